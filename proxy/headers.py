"""Which headers cross the router: end-to-end ones do, connection-bound ones and those we own do not."""

import re
from collections.abc import Iterable

from kvevents import REPORT_SESSION

REQUEST_ID = "X-Request-Id"
REQUEST_TIMEOUT_MS = "X-Request-Timeout-Ms"
RETRY_AFTER = "Retry-After"
DATA_PARALLEL_RANK = "X-data-parallel-rank"
SESSION_ID = "X-Session-ID"
PRIORITY = "X-Vllm-Priority"
PREFILL = "X-Kvproxy-Prefill"
DECODE = "X-Kvproxy-Decode"
CACHED_TOKENS = "X-Kvproxy-Cached-Tokens"

# RFC 9110 section 7.6.1, and the framing fields each hop sets for itself.
_CONNECTION_BOUND = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# A leg has a body, an id, an encoding, deadlines and a rank of its own; `Expect` was answered by our own
# server.
_NOT_ON_A_LEG = _CONNECTION_BOUND | frozenset(
    {
        "accept-encoding",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "x-api-key",
        REQUEST_ID.lower(),
        REQUEST_TIMEOUT_MS.lower(),
        DATA_PARALLEL_RANK.lower(),
    }
)

_NOT_ON_A_KEYED_LEG = _NOT_ON_A_LEG | {"authorization"}

_NOT_IN_AN_ANSWER = _CONNECTION_BOUND | frozenset(
    {
        "content-length",
        REQUEST_ID.lower(),
        # What browsers keep for an origin, or do to it: theirs is kvproxy, and its engines are many.
        "accept-ch",
        "alt-svc",
        "clear-site-data",
        "nel",
        "refresh",
        "report-to",
        "reporting-endpoints",
        "service-worker-allowed",
        "set-cookie",
        "set-cookie2",
        "strict-transport-security",
    }
)

_CORS = "access-control-"
"""Browsers speak to kvproxy, and are told by it alone who may read what."""

MAX_CLIENT_ID_CHARS = 64
"""Of a client's id in that of its legs: two UUIDs nearly. Engines repeat it in their logs, answers and
messages."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
"""Connectors have taken ids apart at colons, and find addresses in them; a quotation mark swallows what
follows in a log."""

Headers = list[tuple[str, str]]


def leg_id(client_id: str, unique: str) -> str:
    """What engines call a request: as its client does, and told apart from others that are called so.

    KV may be paired by it, and clients use an id twice.
    """
    return f"{safe_id(client_id[:MAX_CLIENT_ID_CHARS])}-{unique}"


def safe_id(client_id: str) -> str:
    """A client's id for the log and for engines: what reads lines takes it for one word, and so begins that
    of its legs.
    """
    return _UNSAFE.sub("-", client_id)


def value_of(name: str, headers: Iterable[tuple[str, str]]) -> str | None:
    """The first value of a header; None if it is not there."""
    return next((value for each, value in headers if each.lower() == name.lower()), None)


def _end_to_end(headers: Iterable[tuple[str, str]], ours: frozenset[str]) -> Headers:
    """Those that are neither `ours` nor named by a `Connection` header."""
    kept: Headers = []
    named: set[str] = set()
    for name, value in headers:
        lower = name.lower()
        if lower == "connection":
            named.update(token.strip().lower() for token in value.split(","))
        elif lower not in ours:
            kept.append((name, value))
    return [(name, value) for name, value in kept if name.lower() not in named] if named else kept


def for_engine(client: Iterable[tuple[str, str]], *, keep_authorization: bool) -> Headers:
    """The client's headers that go to an engine; its `Authorization` only if no engine key is configured.

    A session id passes, unless it is the one that marks the reports kvproxy asks engines for.
    """
    ours = _NOT_ON_A_LEG if keep_authorization else _NOT_ON_A_KEYED_LEG
    return [
        (name, value)
        for name, value in _end_to_end(client, ours)
        if value != REPORT_SESSION or name.lower() != SESSION_ID.lower()
    ]


def for_client(engine: Iterable[tuple[str, str]]) -> Headers:
    """An engine's headers that go to the client."""
    headers = _end_to_end(engine, _NOT_IN_AN_ANSWER)
    return [(name, value) for name, value in headers if not name.lower().startswith(_CORS)]


_UNBUFFERED = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))


def for_streaming_client(engine: Iterable[tuple[str, str]]) -> Headers:
    """Those of a stream, with what keeps proxies from holding it back unless the engine said something of
    that itself.

    nginx buffers answers without the second
    (https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering).
    """
    headers = for_client(engine)
    said = {name.lower() for name, _ in headers}
    return headers + [(name, value) for name, value in _UNBUFFERED if name.lower() not in said]
