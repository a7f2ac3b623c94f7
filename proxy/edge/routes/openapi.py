"""`GET /openapi.json` describes exactly the routes of the socket that it is asked on.

The file `openapi.json` beside this one holds the description. Three parts are added: the schemas of what
operators ask and get, which are made of the structs that are served (`edge/shown/schemas.py`), the generating
routes, and those that one engine serves whole. For these the file has patterns
(`components.pathItems`), which a dialect, or a row of `request/passing.py`, fills in. A test holds the paths
of the description to those that the application routes.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import msgspec
from aiohttp import web

from proxy.edge.app_keys import SPOKEN, WHOLE
from proxy.edge.shown.schemas import schemas
from proxy.request.dialects import DIALECTS, Dialect
from proxy.request.passing import ROUTES, Carries, Whole

PATH = "/openapi.json"
EXPLAIN = "/explain"
ROUTE = "route"
"""The part of its query that names a generating route by its path."""


@functools.lru_cache(4)
def description(
    dialects: tuple[Dialect, ...] = DIALECTS, whole: tuple[Whole, ...] = ROUTES
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes, with the generating routes of `dialects` and those in
    `whole`.
    """
    text = resources.files(__package__).joinpath("openapi.json").read_bytes()
    document: dict[str, Any] = msgspec.json.decode(text)
    document["components"]["schemas"] |= schemas()
    patterns = document["components"].pop("pathItems")
    generating = patterns["Generating"]
    responses = document["components"]["responses"]
    routes = {dialect.path: _route(dialect, generating, patterns["Whole"]) for dialect in dialects}
    asked = document["paths"][EXPLAIN]["post"]["requestBody"]["content"]["application/json"]
    asked["schema"] = {"oneOf": _requests(dialects)}
    named = next(
        each for each in document["paths"][EXPLAIN]["post"]["parameters"] if each.get("name") == ROUTE
    )
    named["schema"]["enum"] = [*routes]
    passing = {route.path: _whole(route, patterns["Whole"], patterns["Form"], generating) for route in whole}
    for path, item in (routes | passing).items():
        if (schema := _error_schema(path, dialects)) is not None:
            for operation in item.values():
                _word(operation, responses, schema)
    document["paths"] = routes | passing | document["paths"]
    return document


def _route(dialect: Dialect, generating: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """The item of a generating route; one that an engine may not have is refused as those in `whole` are."""
    item: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(generating))
    operation = item["post"]
    operation["operationId"] = re.sub(r"_(\w)", lambda found: found[1].upper(), dialect.name)
    operation["summary"] = dialect.summary
    operation["requestBody"]["content"]["application/json"]["schema"] = dialect.request_schema
    if dialect.is_optional:
        refused = {status: whole["post"]["responses"][status] for status in ("403", "404")}
        operation["responses"] = operation["responses"] | refused
    answer = operation["responses"]["200"]
    answer["description"] = answer["description"].replace("{ending}", dialect.ending)
    answer["content"]["application/json"]["schema"] = dialect.answer_schema
    return item


def _error_schema(path: str, dialects: Sequence[Dialect]) -> Mapping[str, Any] | None:
    """What errors on a path look like beside the one envelope; None if they have no other words."""
    found = [dialect for dialect in dialects if f"{path}/".startswith(f"{dialect.path}/")]
    return max(found, key=lambda dialect: len(dialect.path)).error_schema if found else None


def _word(operation: dict[str, Any], responses: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Describe the errors of an operation, which may be in words of its own."""
    for status, response in operation["responses"].items():
        if "$ref" not in response:
            continue
        meant = responses[response["$ref"].rpartition("/")[2]]
        copied: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(meant))
        content = copied["content"]["application/json"]
        content["schema"] = {"anyOf": [schema, content["schema"]]}
        operation["responses"][status] = copied


def _whole(
    route: Whole, pattern: Mapping[str, Any], form: Mapping[str, Any], generating: Mapping[str, Any]
) -> dict[str, Any]:
    """The item of a route that is served whole: its answers are those of a generating route, and more."""
    operation: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(pattern["post"]))
    answers = generating["post"]["responses"]
    operation["operationId"] = _camel(route.path.strip("/"))
    operation["summary"] = route.does
    if route.carries is Carries.SOCKET:
        del operation["requestBody"]
        operation["parameters"].append(_MODEL)
        operation["responses"]["101"] = {"description": "The WebSocket is open."}
    if route.carries is Carries.FORM:
        operation["requestBody"] = form["post"]["requestBody"]
    if route.more:
        operation["description"] += f" {route.more[:1].upper()}{route.more[1:]}."
    operation["responses"] = answers | operation["responses"]
    return {route.method.lower(): operation}


_MODEL = {
    "name": "model",
    "in": "query",
    "description": "The model; without it that of `--model`.",
    "schema": {"type": "string"},
}


def _camel(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+(\w)", lambda found: found[1].upper(), words)


def _requests(dialects: Sequence[Dialect]) -> list[dict[str, Any]]:
    """The schemas of requests that are of one dialect and of no other by their members, and of all others."""
    known = [dialect for dialect in dialects if dialect.known_by is not None]
    schemas = [_request(dialect, known) for dialect in known]
    if len(known) < len(dialects):
        none = {"not": {"anyOf": [{"required": [dialect.known_by]} for dialect in known]}} if known else {}
        schemas.append({"type": "object", "description": "Of the route that `route` names."} | none)
    return schemas


def _request(dialect: Dialect, dialects: Sequence[Dialect]) -> dict[str, Any]:
    """The schema of a request that is of this dialect and of no other."""
    others = [{"required": [other.known_by]} for other in dialects if other is not dialect]
    mine: dict[str, Any] = {"required": [dialect.known_by]}
    if others:
        mine["not"] = others[0] if len(others) == 1 else {"anyOf": others}
    return {"allOf": [dialect.request_schema, mine]}


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    routed = {resource.canonical for resource in request.app.router.resources()}
    dialects = request.app[SPOKEN]
    document = description(tuple(dialects), request.app[WHOLE])
    paths = {path: item for path, item in document["paths"].items() if path in routed}
    return web.json_response(document | {"paths": paths})
