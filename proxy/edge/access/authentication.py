"""If client keys are configured, a request under /v1 without one is refused; of one with a key only the key's
name is passed on.
"""

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.edge.access.client_keys import ClientKeys
from proxy.edge.visit import visit_of

CLIENT_KEYS: web.AppKey[ClientKeys] = web.AppKey("client_keys", ClientKeys)
"""The client keys; missing if none are configured."""

GUARDED = "/v1"
"""The paths that need a client key, as in vLLM: probes, metrics and admin paths need none."""

LOAD_ADAPTER = "/v1/load_lora_adapter"
UNLOAD_ADAPTER = "/v1/unload_lora_adapter"

_FOR_OPERATORS = frozenset({LOAD_ADAPTER, UNLOAD_ADAPTER})
"""Paths below GUARDED that need the admin key instead; vLLM guards them with its client key."""


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request pass if it needs no key or has a right one; answer others as vLLM does, with 401."""
    if not _guarded(request):
        return await handler(request)
    given = request.headers.getall("Authorization", [])
    name = request.app[CLIENT_KEYS].name_of(given[0]) if len(given) == 1 else None
    if name is None:
        return web.json_response(
            {"error": "Unauthorized"}, status=401, headers={"WWW-Authenticate": "Bearer"}
        )
    visit = visit_of(request)
    visit.client = visit.notes["client"] = name
    return await handler(request)


def _guarded(request: web.Request) -> bool:
    """Whether a request needs a key: by the route it matched, so that no spelling of its path evades that."""
    resource = request.match_info.route.resource
    path = request.path if resource is None else resource.canonical
    return path.startswith(GUARDED) and (resource is None or path.rstrip("/") not in _FOR_OPERATORS)
