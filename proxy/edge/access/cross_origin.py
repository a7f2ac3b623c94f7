"""Pages of the configured origins may read the answers of clients' paths, errors included, and never those of
operators' paths.

Preflights are answered before a key is asked for: browsers send none with them.
"""

from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.edge.access.cors import ORIGIN, CorsRules, is_preflight


def allow_origins(app: web.Application, rules: CorsRules, operators: Collection[str]) -> Middleware:
    """Add CORS headers to all answers of `app`, except those on the paths of `operators`.

    Returns the middleware that answers preflights; it MUST stand before the one that asks for keys.
    """

    def is_operators(request: web.Request) -> bool:
        resource = request.match_info.route.resource
        found = request.path if resource is None else resource.canonical
        return found.rstrip("/") in operators

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        if not is_preflight(request.method, request.headers) and not is_operators(request):
            vary = ", ".join(response.headers.getall("Vary", ()))
            response.headers.update(rules.simple(request.headers.get(ORIGIN), vary))

    @web.middleware
    async def answer_preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_preflight(request.method, request.headers) or is_operators(request):
            return await handler(request)
        status, text, headers = rules.preflight(request.headers)
        return web.Response(status=status, text=text, headers=headers)

    app.on_response_prepare.append(add_headers)
    return answer_preflights
