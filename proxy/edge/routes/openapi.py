"""`GET /openapi.json` describes what this very socket serves: the whole API stands in `openapi.json` beside this file.

Routes that are served elsewhere (an admin port) are left out; a test holds the rest to be neither more nor less
than what the application routes.
"""

import functools
from importlib import resources
from typing import Any

import msgspec
from aiohttp import web

PATH = "/openapi.json"


@functools.cache
def description() -> dict[str, Any]:
    """All of it, as an OpenAPI 3.1 document."""
    text = resources.files(__package__).joinpath("openapi.json").read_bytes()
    document: dict[str, Any] = msgspec.json.decode(text)
    return document


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    routed = {resource.canonical for resource in request.app.router.resources()}
    whole = description()
    paths = {path: item for path, item in whole["paths"].items() if path in routed}
    return web.json_response(whole | {"paths": paths})
