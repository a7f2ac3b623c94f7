"""If client keys are configured, a request under /v1 or on another path for clients is refused without one;
of one with a key only the key's name is passed on.
"""

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.edge.access.client_keys import ClientKeys
from proxy.edge.visit import visit_of
from proxy.edge.wording import dialect_at
from proxy.request.dialects import UNAUTHORIZED

CLIENT_KEYS: web.AppKey[ClientKeys] = web.AppKey("client_keys", ClientKeys)
"""The client keys; missing if none are configured."""

GUARDED = ("/v1", "/v2", "/inference", "/cohere")
"""How paths begin that need a client key, whether they are served or not, as in vLLM (`GUARDED_PREFIX` of its
middleware): probes, metrics and admin paths need none."""

FOR_CLIENTS: web.AppKey[frozenset[str]] = web.AppKey("for_clients", frozenset[str])
"""The paths that are served for clients: all need a client key, however they begin."""

LOAD_ADAPTER = "/v1/load_lora_adapter"
UNLOAD_ADAPTER = "/v1/unload_lora_adapter"

_FOR_OPERATORS = frozenset({LOAD_ADAPTER, UNLOAD_ADAPTER})
"""Paths below GUARDED that need the admin key instead; vLLM guards them with its client key."""


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request pass if it needs no key or has a right one; answer others as vLLM does, with 401."""
    if not _guarded(request):
        return await handler(request)
    name = _named(request)
    if name is None:
        dialect = dialect_at(request)
        words = UNAUTHORIZED if dialect is None else dialect.unauthorized()
        return web.json_response(words, status=401, headers={"WWW-Authenticate": "Bearer"})
    visit = visit_of(request)
    visit.client = visit.notes["client"] = name
    return await handler(request)


def _named(request: web.Request) -> str | None:
    """The name of the key in `Authorization` or in Anthropic's `X-API-Key`; None if neither has one."""
    keys = request.app[CLIENT_KEYS]
    given = request.headers.getall("Authorization", [])
    if len(given) == 1 and (name := keys.name_of(given[0])) is not None:
        return name
    given = request.headers.getall("X-API-Key", [])
    return keys.name_of(f"Bearer {given[0]}") if len(given) == 1 else None


def _guarded(request: web.Request) -> bool:
    """Whether a request needs a key: by the route it matched, so that no spelling of its path evades that."""
    resource = request.match_info.route.resource
    path = request.path if resource is None else resource.canonical
    if path.startswith(GUARDED):
        return resource is None or path.rstrip("/") not in _FOR_OPERATORS
    return path.rstrip("/") in request.app.get(FOR_CLIENTS, ())
