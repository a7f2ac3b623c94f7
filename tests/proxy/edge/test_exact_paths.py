"""Exact paths lead where aiohttp's router leads, and everything else is left to it."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp.typedefs import Handler, Middleware

from proxy.config import Config
from proxy.edge.app import create_admin_app, create_app
from proxy.edge.exact_paths import ExactPaths


async def by_router(_request: web.Request) -> web.Response:
    return web.Response(text="router")


def exact(app: web.Application) -> ExactPaths:
    app.freeze()
    return ExactPaths(app, by_router)


@pytest.mark.parametrize("admin", [False, True])
async def test_every_route_with_one_spelling_is_known_and_is_what_the_router_finds(*, admin: bool) -> None:
    app = create_app(Config(model="tiny"))
    if admin:
        app.freeze()
        app = create_admin_app(app)
    known = exact(app).known
    routes = [route for route in app.router.routes() if isinstance(route.resource, web.PlainResource)]
    for route in routes:
        assert route.resource is not None
        asked = make_mocked_request(route.method, route.resource.canonical)
        match, _ = known[asked.method, asked.raw_path]
        assert match.route is (await app.router.resolve(asked)).route is route
        assert match.current_app is app
    assert len(known) == len(routes) > 10


def noting(name: str, seen: list[str]) -> Middleware:
    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        seen.append(f"{name} {request.app is not None} {request.match_info.route.method}")
        return await handler(request)

    return note


def small(seen: list[str]) -> web.Application:
    async def one(request: web.Request) -> web.Response:
        return web.Response(text=request.path)

    async def named(request: web.Request) -> web.Response:
        return web.Response(text=request.match_info["name"])

    app = web.Application(middlewares=[noting("first", seen), noting("second", seen)])
    app.add_routes([web.post("/one", one), web.get("/of/{name}", named)])
    return app


async def test_middlewares_are_around_a_handler_in_their_order() -> None:
    seen: list[str] = []
    response = await exact(small(seen)).answer(make_mocked_request("POST", "/one"))
    assert isinstance(response, web.Response)
    assert response.text == "/one"
    assert seen == ["first True POST", "second True POST"]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/one", {}),
        ("POST", "/one/", {}),
        ("POST", "/one?a=b", {}),
        ("POST", "/on%65", {}),
        ("POST", "//one", {}),
        ("POST", "http://here/one", {}),
        ("POST", "/one", {"Expect": "100-continue"}),
        ("GET", "/of/a", {}),
        ("GET", "/of/{name}", {}),
        ("POST", "/", {}),
    ],
)
async def test_the_router_looks_for_all_others(method: str, path: str, headers: dict[str, str]) -> None:
    seen: list[str] = []
    response = await exact(small(seen)).answer(make_mocked_request(method, path, headers=headers))
    assert isinstance(response, web.Response)
    assert (response.text, seen) == ("router", [])
