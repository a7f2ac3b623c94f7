"""Browsers get the CORS headers that vLLM's framework would send, and no more.

The decisions are those of Starlette 1.10's CORSMiddleware, from which
`tests/proxy/edge/access/data/cors_1_10.json` was recorded. One thing differs: a header that is not printable
ASCII, or is longer than 4096 characters, is never repeated in an answer.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from proxy import headers as names
from proxy.config import Cors
from proxy.config.cors import ANY

ORIGIN = "Origin"
METHOD = "Access-Control-Request-Method"
HEADERS = "Access-Control-Request-Headers"
PRIVATE_NETWORK = "Access-Control-Request-Private-Network"

ALL_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY")
SAFELISTED = ("Accept", "Accept-Language", "Content-Language", "Content-Type")
"""Request headers that browsers may always send; they are listed all the same, as Starlette does."""

EXPOSED = (names.REQUEST_ID, "Retry-After", names.PREFILL, names.DECODE, names.CACHED_TOKENS)
"""Headers of answers that pages may read, as OpenAI's clients do; vLLM exposes none."""

MAX_AGE_S = 600
"""How long a browser may remember the answer to a preflight; Starlette's default."""

_ALLOW = "Access-Control-Allow-"
_VARY = f"{ORIGIN}, {METHOD}, {HEADERS}, {PRIVATE_NETWORK}"
_TEXT = re.compile(r"[ -~]{0,4096}")


class Preflight(NamedTuple):
    """The answer to a preflight, by which a browser asks whether it may send a request."""

    status: int
    text: str
    headers: dict[str, str]


class CorsRules:
    """The CORS headers of answers, by the settings."""

    def __init__(self, settings: Cors) -> None:
        self._origins = frozenset(settings.allowed_origins)
        self._any_origin = ANY in self._origins
        self._credentials = settings.allow_credentials
        self._methods = ALL_METHODS if ANY in settings.allowed_methods else tuple(settings.allowed_methods)
        allowed = sorted({*SAFELISTED, *settings.allowed_headers})
        self._headers = None if ANY in settings.allowed_headers else {name.lower() for name in allowed}
        shared = {f"{_ALLOW}Credentials": "true"} if self._credentials else {}
        if self._any_origin and not self._credentials:
            shared[f"{_ALLOW}Origin"] = ANY
        self._simple = shared | {"Access-Control-Expose-Headers": ", ".join(EXPOSED)}
        self._preflight = shared | {
            "Vary": _VARY,
            f"{_ALLOW}Methods": ", ".join(self._methods),
            "Access-Control-Max-Age": str(MAX_AGE_S),
        }
        if self._headers is not None:
            self._preflight[f"{_ALLOW}Headers"] = ", ".join(allowed)

    def preflight(self, asked: Mapping[str, str]) -> Preflight:
        """The answer to a request for which `is_preflight` holds; `asked` are its headers."""
        answer, refused = dict(self._preflight), []
        origin, wanted = asked[ORIGIN], asked.get(HEADERS)
        if not self._allows(origin):
            refused.append("origin")
        elif f"{_ALLOW}Origin" not in answer:
            answer[f"{_ALLOW}Origin"] = origin
        if asked[METHOD] not in self._methods:
            refused.append("method")
        if wanted is not None:
            if not _TEXT.fullmatch(wanted):
                refused.append("headers")
            elif self._headers is None:
                answer[f"{_ALLOW}Headers"] = wanted
            elif not {name.strip().lower() for name in wanted.split(",")} <= self._headers:
                refused.append("headers")
        if PRIVATE_NETWORK in asked:
            refused.append("private-network")
        if refused:
            return Preflight(400, "Disallowed CORS " + ", ".join(refused), answer)
        return Preflight(200, "OK", answer)

    def simple(self, origin: str | None, vary: str = "") -> dict[str, str]:
        """The CORS headers of any other answer. `origin`: the request's `Origin`; `vary`: the answer's `Vary`
        so far.
        """
        headers = {} if origin is None else dict(self._simple)
        if origin is not None and f"{_ALLOW}Origin" not in headers and self._allows(origin):
            headers[f"{_ALLOW}Origin"] = origin
        if ORIGIN.lower() not in {name.strip().lower() for name in vary.split(",")}:
            vary = f"{vary}, {ORIGIN}" if vary else ORIGIN
        return headers | {"Vary": vary}

    def _allows(self, origin: str) -> bool:
        return (self._any_origin and _TEXT.fullmatch(origin) is not None) or origin in self._origins


def is_preflight(method: str, asked: Mapping[str, str]) -> bool:
    """Whether a request is a preflight: a browser asks whether it may send another. `asked`: its headers."""
    return method == "OPTIONS" and ORIGIN in asked and METHOD in asked
