"""`/openapi.json` is a valid description of every route there is, and of none that is not."""

from importlib import metadata

from openapi_spec_validator import validate

from proxy.config import Config
from proxy.edge.app import create_app
from proxy.edge.routes.openapi import description
from proxy.errors import RequestError, envelope


def _described() -> set[tuple[str, str]]:
    return {
        (method.upper(), path)
        for path, item in description()["paths"].items()
        for method in item
        if method != "parameters"
    }


def _statuses(path: str, method: str = "post") -> set[int]:
    return {int(status) for status in description()["paths"][path][method]["responses"]}


def _kinds(kind: type[RequestError] = RequestError) -> set[type[RequestError]]:
    return {kind}.union(*(_kinds(child) for child in kind.__subclasses__()))


def test_the_description_is_a_valid_openapi_document_of_this_version() -> None:
    validate(description())
    assert description()["info"]["version"] == metadata.version("kvproxy")


async def test_every_route_is_described_and_nothing_else() -> None:
    app = create_app(Config(model="tiny"))
    routed = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None  # aiohttp adds HEAD to every GET
    }
    slashed = {(method, path) for method, path in routed if path.endswith("/")}
    assert routed - slashed == _described() == {(method, path.rstrip("/")) for method, path in slashed}


def test_every_error_of_kvproxy_is_among_the_answers_of_a_generating_route_or_of_an_admin_route() -> None:
    known = _statuses("/v1/completions") | _statuses("/instances/add")
    assert {kind.status for kind in _kinds()} <= known


def test_both_generating_routes_give_the_same_answers() -> None:
    assert _statuses("/v1/completions") == _statuses("/v1/chat/completions")


def test_the_envelope_is_described_as_it_is() -> None:
    schemas = description()["components"]["schemas"]
    assert schemas["Error"]["properties"]["error"] == {"$ref": "#/components/schemas/ErrorTold"}
    assert schemas["ErrorTold"]["required"] == [*envelope("m", "k", 400)["error"]]
