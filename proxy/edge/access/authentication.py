"""With client keys configured nothing under /v1 is done for a request without one; who asks is known by name
only.
"""

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.edge.access.client_keys import ClientKeys
from proxy.edge.middlewares import NOTES_KEY

CLIENT_KEYS: web.AppKey[ClientKeys] = web.AppKey("client_keys", ClientKeys)
"""Set if clients must show a key."""

CLIENT_KEY: web.RequestKey[str] = web.RequestKey("client", str)
"""The name of the key a request came with; not there if none is asked for."""

GUARDED = "/v1"
"""As vLLM guards: probes, metrics and admin paths have no client key."""

LOAD_ADAPTER = "/v1/load_lora_adapter"
UNLOAD_ADAPTER = "/v1/unload_lora_adapter"

_FOR_OPERATORS = frozenset({LOAD_ADAPTER, UNLOAD_ADAPTER})
"""vLLM has these among what clients use; they want the admin key."""


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request pass if it needs no key or has one; for the others, vLLM's own answer."""
    keys = request.app.get(CLIENT_KEYS)
    if keys is None or not _guarded(request):
        return await handler(request)
    given = request.headers.getall("Authorization", [])
    name = keys.name_of(given[0]) if len(given) == 1 else None
    if name is None:
        return web.json_response(
            {"error": "Unauthorized"}, status=401, headers={"WWW-Authenticate": "Bearer"}
        )
    request[CLIENT_KEY] = name
    request[NOTES_KEY]["client"] = name
    return await handler(request)


def _guarded(request: web.Request) -> bool:
    """By the route that was found, so that no other spelling of a path gets around it."""
    resource = request.match_info.route.resource
    path = request.path if resource is None else resource.canonical
    return path.startswith(GUARDED) and (resource is None or path.rstrip("/") not in _FOR_OPERATORS)
