"""Pages of other origins read what clients may ask, errors included, and nothing that operators ask.

A browser that asks whether it may is answered before anybody looks for a key: it has none to show.
"""

from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.edge.access.cors import ORIGIN, CorsRules, is_preflight


def allow_origins(app: web.Application, rules: CorsRules, operators: Collection[str]) -> Middleware:
    """Have all answers of `app` say who may read them, but those on the paths of `operators`.

    Returns the middleware that answers preflights; it belongs before those that ask for keys.
    """

    def is_theirs(request: web.Request) -> bool:
        resource = request.match_info.route.resource
        found = request.path if resource is None else resource.canonical
        return found.rstrip("/") in operators

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        if not is_preflight(request.method, request.headers) and not is_theirs(request):
            vary = ", ".join(response.headers.getall("Vary", ()))
            response.headers.update(rules.simple(request.headers.get(ORIGIN), vary))

    @web.middleware
    async def answer_preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_preflight(request.method, request.headers) or is_theirs(request):
            return await handler(request)
        status, text, headers = rules.preflight(request.headers)
        return web.Response(status=status, text=text, headers=headers)

    app.on_response_prepare.append(tell)
    return answer_preflights
