"""A request whose path is spelled exactly as a route's goes straight to that route; aiohttp's router has all
others, and decides what is not found and which methods a path has.

The router does more than all else before a handler: it takes the path apart, describes the match, and looks
up the middlewares, for each request anew.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

Handle = Callable[[Any], Awaitable[web.StreamResponse]]


class ExactPaths:
    """The routes of an application by method and path, with their middlewares around them."""

    def __init__(self, app: web.Application, otherwise: Handle) -> None:
        """`app` must be frozen; `otherwise`: its own way to answer a request."""
        self._otherwise = otherwise
        self.known: dict[tuple[str, str], tuple[web.UrlMappingMatchInfo, Handler]] = {}
        """What is matched and what answers, by method and path."""
        for route in app.router.routes():
            if isinstance(route.resource, web.PlainResource):
                match = web.UrlMappingMatchInfo({}, route)
                match.add_app(app)
                match.freeze()
                at = (route.method, route.resource.canonical)
                self.known.setdefault(at, (match, _within_middlewares(app, route.handler)))

    def answer(self, request: web.Request) -> Awaitable[web.StreamResponse]:
        """The answer to a request. One that expects something first (`Expect`) goes the application's way."""
        known = self.known.get((request.method, request.raw_path))
        if known is None or hdrs.EXPECT in request.headers:
            return self._otherwise(request)
        request._match_info, handler = known  # noqa: SLF001  # what the router would do
        return handler(request)


def _within_middlewares(app: web.Application, handler: Handler) -> Handler:
    for middleware in reversed(app.middlewares):
        handler = functools.partial(middleware, handler=handler)
    return handler
