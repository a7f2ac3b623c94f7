"""Whatever is asked, kvproxy answers as its own description says, and is as it was afterwards.

Requests are made by schemathesis from `/openapi.json`: such as fit the description, and such as break it.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from proxy.config import parse_instance
from proxy.edge.routes.openapi import description
from proxy.errors import ConfigError
from proxy.phases import Role
from proxy.request.passing import ROUTES
from proxy.simulation import StandIn, StandInConfig
from tests.helpers.service import ADMIN_KEY, Pair, fleet, wait_until

SCHEMA = schemathesis.openapi.from_dict(description())
OPERATIONS = [SCHEMA[path][method] for path, item in description()["paths"].items() for method in item]
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 12
PASSED = {route.path for route in ROUTES}
SHORT_TOKENS = 160
"""An absent max_tokens of a chat means as many as fit."""

# kvproxy draws its jitter in another thread, which hypothesis takes for a strategy's doing.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


class Served:
    """A kvproxy in a thread of its own, with or without an admin key, and an engine it does not know."""

    def __init__(self, portal: BlockingPortal, pair: Pair, spare: StandIn, admin_key: str | None) -> None:
        self.pair = pair
        self.admin_key = admin_key
        self._portal = portal
        self._spare = spare

    @property
    def url(self) -> str:
        return self.pair.service.url

    def nearby(self, body: Any) -> Any:
        """The body, naming an engine of ours if it names any: nothing else may be connected to."""
        if isinstance(body, dict) and isinstance(body.get("instance"), str):
            try:
                parse_instance(body["instance"], Role.BOTH)
            except ConfigError:
                return body
            return body | {"instance": self._spare.address}
        return body

    def assert_as_before(self) -> None:
        self._portal.call(self._assert_as_before)

    async def _assert_as_before(self) -> None:
        service, engines = self.pair.service, self.pair.engines
        await service.settled()
        assert all(instance.why_unusable() is None for instance in service.fleet)
        assert {engine.address for engine in engines.all} <= {i.address for i in service.fleet}
        await wait_until(lambda: not engines.holds, "the end of all holds")
        assert await service.metric("kvproxy_holds_total", end="stranded") == 0
        assert (await service.complete("still right")).text == (await service.complete("still right")).text


@pytest.fixture(scope="module", params=[ADMIN_KEY, None], ids=["admin key", "no admin key"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with start_blocking_portal() as portal:
        context = fleet(
            prefill=2,
            decode=2,
            admin_api_key=request.param,
            stand_in={"max_model_len": SHORT_TOKENS, "lora_updates": True, "scale_out": True},
        )
        with (
            portal.wrap_async_context_manager(context) as pair,
            portal.wrap_async_context_manager(StandIn(StandInConfig(max_model_len=SHORT_TOKENS))) as spare,
        ):
            yield Served(portal, pair, spare, request.param)


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
        for operation in OPERATIONS
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE
        or operation.body  # a GET has nothing that could break the description
    ],
)
def test_answers_are_as_described(served: Served, operation: Any, mode: GenerationMode) -> None:
    administers = operation.path.startswith(("/instances", "/v1/load", "/v1/unload"))
    true_failures = {503} if administers and served.admin_key is None else set()

    @settings(
        max_examples=3 if operation.path in PASSED else EXAMPLES,  # an engine judges what is passed
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # what fails is small enough
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if administers:
            case.body = served.nearby(case.body)
        headers = {"X-API-Key": served.admin_key} if served.admin_key else {}
        response = case.call(base_url=served.url, headers=headers)
        assert response.status_code < 500 or response.status_code in true_failures, response.text
        case.validate_response(response, checks=CHECKS)

    run()
    served.assert_as_before()
