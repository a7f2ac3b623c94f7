"""End-to-end headers cross the router; connection-bound ones and those that kvproxy sets itself do not."""

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

# Each leg has its own body, id, encoding, deadlines and rank; `Expect` was answered by kvproxy's server.
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
        # What a browser would keep for its origin, or do to it: that is kvproxy, not one of its engines.
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

_CORS = ("access-control-",)
"""The prefix of CORS headers: browsers get those of kvproxy alone."""

MAX_CLIENT_ID_CHARS = 64
"""How much of a client's id becomes part of its legs' id: nearly two UUIDs. Engines repeat that id in their
logs, answers and messages."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
"""Characters that are replaced in ids. Connectors have taken ids apart at colons and looked for addresses in
them, and a quotation mark would swallow the rest of a log line."""

Headers = list[tuple[str, str]]


def leg_id(client_id: str, unique: str) -> str:
    """The id that engines get: the client's, and `unique`. KV may be paired by it, and clients reuse ids."""
    return f"{safe_id(client_id[:MAX_CLIENT_ID_CHARS])}-{unique}"


def safe_id(client_id: str) -> str:
    """A client's id for the log and for engines, as one word; the id of its legs begins with it."""
    return _UNSAFE.sub("-", client_id)


def value_of(name: str, headers: Iterable[tuple[str, str]]) -> str | None:
    """The first value of a header; None if there is none."""
    return next((value for each, value in headers if each.lower() == name.lower()), None)


def _end_to_end(
    headers: Iterable[tuple[str, str]], ours: frozenset[str], begin: tuple[str, ...] = ()
) -> Headers:
    """The headers not in `ours`, not named by a `Connection` header, and beginning with none of `begin`."""
    kept: Headers = []
    named: set[str] = set()
    for header in headers:
        lower = header[0].lower()
        if lower not in ours:
            if not lower.startswith(begin):
                kept.append(header)
        elif lower == "connection":
            named.update(token.strip().lower() for token in header[1].split(","))
    named -= ours
    return [(name, value) for name, value in kept if name.lower() not in named] if named else kept


def for_engine(client: Iterable[tuple[str, str]], *, keep_authorization: bool) -> Headers:
    """The client's headers that go to an engine; `keep_authorization`: its `Authorization` does, too.

    A session id passes, unless it is the one that marks the cache reports kvproxy asks engines for.
    """
    ours = _NOT_ON_A_LEG if keep_authorization else _NOT_ON_A_KEYED_LEG
    return [
        (name, value)
        for name, value in _end_to_end(client, ours)
        if value != REPORT_SESSION or name.lower() != SESSION_ID.lower()
    ]


def for_client(engine: Iterable[tuple[str, str]]) -> Headers:
    """An engine's headers that go to the client."""
    return _end_to_end(engine, _NOT_IN_AN_ANSWER, _CORS)


_UNBUFFERED = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))


def for_streaming_client(engine: Iterable[tuple[str, str]]) -> Headers:
    """An engine's headers of a stream, with those that keep proxies from buffering it unless the engine set
    them itself.

    nginx buffers answers without `X-Accel-Buffering: no`
    (https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering).
    """
    headers = for_client(engine)
    there = {name.lower() for name, _ in headers}
    return headers + [(name, value) for name, value in _UNBUFFERED if name.lower() not in there]
