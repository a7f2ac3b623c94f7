"""End-to-end headers cross the router; connection-bound ones and those that kvproxy sets itself do not."""

import re
from collections.abc import Iterable

from kvevents import REPORT_SESSION

REQUEST_ID = "X-Request-Id"
REQUEST_TIMEOUT_MS = "X-Request-Timeout-Ms"
TTFT_MS = "X-Kvproxy-TTFT-Ms"
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
        TTFT_MS.lower(),
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


class _Crosses(dict[str, bool]):
    """Whether a header crosses, by its name as it was met: looked up in one step from the second time on."""

    def __init__(self, ours: frozenset[str], begin: tuple[str, ...] = ()) -> None:
        """Those in `ours` do not cross, nor do those that begin with any of `begin`."""
        super().__init__()
        self.ours = ours
        self._begin = begin

    def __missing__(self, name: str) -> bool:
        lower = name.lower()
        crosses = lower not in self.ours and not lower.startswith(self._begin)
        if len(self) < _MAX_NAMES and len(name) <= _MAX_NAME_CHARS:
            self[name] = crosses
        return crosses


_MAX_NAMES = 1024
_MAX_NAME_CHARS = 64
"""Of what is remembered, since clients choose names."""

_TO_AN_ENGINE = _Crosses(_NOT_ON_A_LEG)
_TO_AN_ENGINE_WITH_A_KEY = _Crosses(_NOT_ON_A_KEYED_LEG)
_TO_A_CLIENT = _Crosses(_NOT_IN_AN_ANSWER, _CORS)


def _end_to_end(headers: Iterable[tuple[str, str]], crossing: _Crosses) -> Headers:
    """The headers that cross, and that no `Connection` header names."""
    kept: Headers = []
    named: set[str] = set()
    for header in headers:
        name = header[0]
        if crossing[name]:
            kept.append(header)
        elif name.lower() == "connection":
            named.update(token.strip().lower() for token in header[1].split(","))
    named -= crossing.ours
    return [(name, value) for name, value in kept if name.lower() not in named] if named else kept


def for_engine(client: Iterable[tuple[str, str]], *, keep_authorization: bool) -> Headers:
    """The client's headers that go to an engine; `keep_authorization`: its `Authorization` does, too.

    A session id passes, unless it is the one that marks the cache reports kvproxy asks engines for.
    """
    kept = _end_to_end(client, _TO_AN_ENGINE if keep_authorization else _TO_AN_ENGINE_WITH_A_KEY)
    return [
        header for header in kept if header[1] != REPORT_SESSION or header[0].lower() != SESSION_ID.lower()
    ]


def for_client(engine: Iterable[tuple[str, str]]) -> Headers:
    """An engine's headers that go to the client."""
    return _end_to_end(engine, _TO_A_CLIENT)


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
