"""What one engine serves whole is answered as that engine would, and fails, waits and ends as any other
request.
"""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.config import Deadlines, Retries, Security
from proxy.edge.app import create_app, shut_down
from proxy.errors import ConfigError
from proxy.request.passing import ROUTES, Carries
from proxy.simulation.live.faults import Fault
from scripts.workshop.live.waiting import wait_until as eventually
from tests.helpers.service import DEADLINE_S, InOrder, ask, fleet, prose, wait_until

OF_JSON = [route for route in ROUTES if route.carries is Carries.JSON]
WHOLE = "/tokenize"
"""A route that every engine serves whole."""
BODY = {"model": "tiny", "prompt": prose(20)}


async def test_every_route_is_answered_as_the_engine_would_and_counted_by_its_name() -> None:
    body = {
        "model": "tiny",
        "prompt": "hello",
        "tokens": [5, 6],
        "input": "hello",
        "query": "a",
        "documents": ["b"],
        "messages": [[{"role": "user", "content": "hello"}]],
    }
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        service, engine = pair.service, pair.engines.decode[0]
        statuses = set()
        for route in OF_JSON:
            asked = {"tokens": [5]} if route.name == "detokenize" else body
            ours, theirs = (
                await service.ask(route.path, asked),
                await ask(service.session, engine.url, route.path, asked),
            )
            assert (ours.status, _told(ours.json)) == (theirs.status, _told(theirs.json)), route.path
            assert ours.headers["Content-Type"].partition(";")[0] == "application/json"
            assert engine.seen[-2].path == engine.seen[-1].path == route.path
            statuses.add(ours.status)
        assert {200, 403, 404} <= statuses
        assert {leg.path for leg in pair.engines.prefill[0].seen} <= {"/tokenize"}
        for name in {route.name for route in OF_JSON}:
            counted = await service.metric("kvproxy_requests_total", route=name)
            assert counted == sum(route.name == name for route in OF_JSON)
        assert service.claims == 0


def _told(answer: Any) -> Any:
    """An answer without what differs between two of one engine."""
    if not isinstance(answer, dict):
        return answer
    return {key: value for key, value in answer.items() if key not in {"id", "created"}}


async def test_an_engine_without_the_route_keeps_its_model() -> None:
    async with fleet(prefill=1, decode=2, kv_events=False) as pair:
        for _ in range(4):
            assert (await pair.service.ask("/v1/embeddings", {"model": "tiny", "input": "x"})).status == 404
        assert sum(len(engine.seen) for engine in pair.engines.decode) == 4  # none was asked twice
        assert all("tiny" in instance.models for instance in pair.service.fleet)
        missing = await pair.service.ask("/v1/embeddings", {"model": "none", "input": "x"})
        assert missing.json["error"]["message"] == "The model `none` does not exist."


async def test_tokens_are_counted_while_any_engine_is_up() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        decode, prefill = pair.engines.decode[0], pair.engines.prefill[0]
        await pair.service.admin("/instances/drain", {"instance": decode.address})
        answer = await pair.service.ask(WHOLE, BODY)
        assert (answer.status, answer.json["count"]) == (200, len(answer.json["tokens"]))
        assert (len(decode.seen), prefill.seen[-1].path) == (0, WHOLE)
        assert pair.service.claims == 0


async def test_what_no_client_may_set_stays_here() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        await pair.service.ask("/pooling", {"input": "x", "kv_transfer_params": {"a": 1}, "request_id": "r"})
        assert json.loads(pair.engines.decode[0].seen[-1].body) == {"input": "x"}


async def test_every_route_needs_a_client_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice key-of-alice\n")
    keys.chmod(0o600)
    security = Security(api_key_file=keys)
    async with fleet(prefill=1, decode=1, kv_events=False, security=security, passed=("/own",)) as pair:
        for path in (*(route.path for route in ROUTES), "/own", "/own/"):
            assert (await pair.service.ask(path, {})).status == 401
        assert (await pair.service.ask("/own", {}, Authorization="Bearer key-of-alice")).status == 404
        assert len(pair.engines.decode[0].seen) == 1


async def test_more_paths_can_be_passed() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, passed=("/own", "/v1/own/one")) as pair:
        service = pair.service
        for path in ("/own", "/v1/own/one", "/own/"):
            assert (await service.ask(path, {"a": 1})).json == {"detail": "Not Found"}
        assert [leg.path for leg in pair.engines.decode[0].seen] == ["/own", "/v1/own/one", "/own"]
        refused = await service.ask("/v1/own", {})
        assert (refused.status, refused.json["error"]["type"]) == (404, "NotFoundError")
        described = (await service.ask("/openapi.json")).json["paths"]
        assert {"/own", "/v1/own/one"} <= described.keys()
        assert await service.metric("kvproxy_requests_total", route="passed") == 3


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/status", "/health"])
async def test_what_is_served_already_cannot_be_passed(path: str) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        config = pair.engines.config(kv_events=False, passed=(path,))
        with pytest.raises(ConfigError, match=f"--pass {path}: kvproxy serves it already"):
            create_app(config)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", status=500, path=WHOLE),
        Fault(kind="cut", path=WHOLE),
        Fault(kind="hang", path=WHOLE),
        Fault(kind="status", status=503, path=WHOLE),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status}",
)
async def test_another_instance_serves_it_if_one_fails(fault: Fault) -> None:
    quick = Deadlines(first_byte_s=0.5)
    async with fleet(prefill=1, decode=2, kv_events=False, policy=InOrder(), deadlines=quick) as pair:
        bad, good = sorted(pair.engines.decode, key=lambda engine: engine.address)
        bad.faults.add(fault)
        answer = await pair.service.ask(WHOLE, BODY)
        assert (answer.status, answer.json["count"]) == (200, len(answer.json["tokens"]))
        assert [leg.path for leg in good.seen] == [WHOLE]
        await pair.service.settled()
        assert pair.service.claims == 0


async def test_a_client_that_leaves_frees_the_instance() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        engine = pair.engines.decode[0]
        engine.faults.add(Fault(kind="hang", path=WHOLE))
        asking = asyncio.get_running_loop().create_task(pair.service.ask(WHOLE, BODY))
        await wait_until(lambda: pair.service.claims == 1 and bool(engine.seen), "the leg")
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await wait_until(lambda: pair.service.claims == 0, "the end of the claim")


async def test_a_request_that_takes_too_long_gets_504() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, retries=Retries(max_attempts=1)) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="hang", path=WHOLE))
        answer = await pair.service.ask(WHOLE, BODY, X_Request_Timeout_Ms="300")
        assert (answer.status, answer.json["error"]["code"]) == (504, 504)
        await wait_until(lambda: pair.service.claims == 0, "the end of the claim")
        await pair.service.counts(1, "kvproxy_requests_total", outcome="timeout", route="tokenize")


async def test_a_shutdown_tells_its_client() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        engine = pair.engines.decode[0]
        engine.faults.add(Fault(kind="hang", path=WHOLE))
        asking = asyncio.get_running_loop().create_task(pair.service.ask(WHOLE, BODY))
        await wait_until(lambda: bool(engine.seen), "the leg")
        await shut_down(pair.service.runner, 0.0, asyncio.Event())
        answer = await asking
        assert (answer.status, answer.json["error"]["message"]) == (503, "kvproxy is shutting down")


async def test_invocations_go_where_their_prompt_is_cached() -> None:
    async with fleet(prefill=0, decode=0, both=2) as pair:
        service = pair.service
        messages = [{"role": "user", "content": prose(400, 3)}]
        asked = {"model": "tiny", "messages": messages, "max_tokens": 4, "temperature": 0}
        plain = await service.ask("/v1/chat/completions", asked)
        assert plain.status == 200
        holder = next(engine for engine in pair.engines.both if engine.seen)
        await service.counts(1, "kvproxy_requests_total", route="chat_completions")
        asked_for = {"messages": messages, "model": "tiny"}

        async def cached() -> bool:
            found = (await service.explain(asked_for))["prefill"]["candidates"]
            return any(candidate["cached_tokens"] for candidate in found)

        await eventually(cached, DEADLINE_S, "the events")
        for path, body in (
            ("/invocations", asked),
            ("/invocations", asked | {"stream": True}),
            ("/v1/chat/completions/batch", asked | {"messages": [messages, messages]}),
        ):
            answer = await service.ask(path, body)
            assert answer.status == 200, answer.body
            assert holder.seen[-1].path == path
        assert service.claims == 0
