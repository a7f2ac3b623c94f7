"""What builds on a stored response, or asks about it, reaches the engine that stores it."""

import asyncio
import pathlib
from typing import Any

import aiohttp

from proxy.config import Security, State
from proxy.edge.app import shut_down
from proxy.headers import REQUEST_TIMEOUT_MS
from proxy.request.dialects import RESPONSES
from proxy.simulation import Fault
from tests.helpers.service import UNHURRIED, Answer, Service, engines, fleet, kvproxy, prose, wait_until
from tests.promises.test_responses import body_of, said_in, text_in

PATH = RESPONSES.path
STORE: dict[str, Any] = {"responses_store": True}


async def asked(service: Service, method: str, path: str, **headers: str) -> Answer:
    """Any request without a body."""
    async with service.session.request(method, f"{service.url}{PATH}/{path}", headers=headers) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


def found(answer: Answer, response_id: str) -> str:
    """The words of a 404, which begin as vLLM's do."""
    error = answer.json["error"]
    assert (answer.status, error["type"], error["param"]) == (404, "invalid_request_error", "response_id")
    first = f"Response with id '{response_id}' not found."
    assert error["message"].startswith(first)
    return str(error["message"]).removeprefix(first).strip()


async def test_a_response_is_where_it_was_answered() -> None:
    async with fleet(1, 3, stand_in=STORE, decision_headers=True) as pair:
        first = await pair.service.ask(PATH, body_of(prose(30)))
        there, response_id = first.headers["X-Kvproxy-Decode"], first.json["id"]
        assert (await asked(pair.service, "GET", response_id)).json == first.json
        for _ in range(4):  # wherever others are less loaded
            second = await pair.service.ask(PATH, body_of("more", previous_response_id=response_id))
            assert second.status == 200, second.body
            assert second.headers["X-Kvproxy-Decode"] == second.headers["X-Kvproxy-Prefill"] == there
            response_id = second.json["id"]
        streamed = await pair.service.ask(
            PATH, body_of("more", previous_response_id=response_id, stream=True)
        )
        assert streamed.headers["X-Kvproxy-Decode"] == there
        last = said_in(streamed.body)[-1]["response"]
        assert (await asked(pair.service, "GET", last["id"])).json == last
        assert (await asked(pair.service, "DELETE", last["id"])).status == 405
        assert (await asked(pair.service, "GET", f"{last['id']}/input_items")).status == 404
        refused = await asked(pair.service, "POST", f"{last['id']}/cancel")
        assert refused.json["error"]["message"] == "Cannot cancel a synchronous response."
        assert not any(seen.path.startswith(PATH + "/") for seen in pair.engines.prefill[0].seen)


async def test_work_in_the_background_is_followed_and_cancelled_where_it_is() -> None:
    async with fleet(1, 2, stand_in=STORE) as pair:
        queued = await pair.service.ask(PATH, body_of(prose(30), background=True))
        assert queued.json["status"] == "queued"

        await wait_until(lambda: not any(e.responses.computing for e in pair.engines.decode), "its end")
        done = await asked(pair.service, "GET", queued.json["id"])
        assert done.json["status"] == "incomplete"
        assert text_in(done) == text_in(await pair.service.ask(PATH, body_of(prose(30))))
        long = body_of(prose(30), background=True, stream=True, max_output_tokens=5000)
        async with pair.service.session.post(pair.service.url + PATH, json=long) as response:
            begun = await response.content.readuntil(b"response.output_text.delta")
        [created, *_] = said_in(begun.rpartition(b"event: ")[0])
        response_id = created["response"]["id"]
        async with pair.service.session.get(
            f"{pair.service.url}{PATH}/{response_id}?stream=true&starting_after=1"
        ) as events:
            assert events.headers["Content-Type"].startswith("text/event-stream")
            assert await events.content.readuntil(b"\n") == b"event: response.output_item.added\n"
        cancelled = await asked(pair.service, "POST", f"{response_id}/cancel")
        assert cancelled.json["status"] == "cancelled"
        await wait_until(lambda: not any(e.responses.computing for e in pair.engines.decode), "its end")


async def test_what_nobody_knows_is_not_found() -> None:
    async with fleet(1, 1, stand_in=STORE) as pair:
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            assert found(await asked(pair.service, method, f"resp_none{path}"), "resp_none") == ""
        body = body_of("more", previous_response_id="resp_none")
        assert found(await pair.service.ask(PATH, body), "resp_none") == ""
        wrong = await pair.service.ask(PATH, body | {"temperature": 7})
        assert (wrong.status, wrong.json["error"]["param"]) == (404, "response_id")
        unstored = await pair.service.ask(PATH, body_of("hi", store=False))
        assert found(await asked(pair.service, "GET", unstored.json["id"]), unstored.json["id"]) == ""


async def test_an_instance_that_lost_a_response_is_said_to_have() -> None:
    async with fleet(1, 2, stand_in=STORE, decision_headers=True) as pair:
        first = await pair.service.ask(PATH, body_of(prose(30)))
        response_id, there = first.json["id"], first.headers["X-Kvproxy-Decode"]
        [engine] = [each for each in pair.engines.decode if each.address == there]
        more = body_of("more", previous_response_id=response_id)
        await engine.restart()
        assert "restarted" in found(await asked(pair.service, "GET", response_id), response_id)
        engine.die()
        await engine.ended.wait()
        instance = pair.service.fleet.get(there)
        assert instance is not None
        await wait_until(lambda: instance.why_unusable() is not None, "the end of the engine being noticed")
        for answer in (await asked(pair.service, "GET", response_id), await pair.service.ask(PATH, more)):
            assert answer.status == 503
            assert "cannot be reached" in answer.json["error"]["message"]
        removed = {"type": "decode", "instance": there, "force": True}
        assert (await pair.service.admin("/instances/remove", removed)).status == 200
        await wait_until(lambda: pair.service.fleet.get(there) is None, "the instance's removal")
        assert "has left" in found(await asked(pair.service, "GET", response_id), response_id)
        assert "has left" in found(await pair.service.ask(PATH, more), response_id)


async def test_a_failed_attempt_is_made_again_where_the_response_is() -> None:
    async with fleet(1, 2, stand_in=STORE, decision_headers=True) as pair:
        first = await pair.service.ask(PATH, body_of(prose(30)))
        there = first.headers["X-Kvproxy-Decode"]
        [engine] = [each for each in pair.engines.decode if each.address == there]
        engine.faults.add(Fault(kind="error", path=PATH, status=500, times=1))
        answer = await pair.service.ask(PATH, body_of("more", previous_response_id=first.json["id"]))
        assert (answer.status, answer.headers["X-Kvproxy-Decode"]) == (200, there)
        assert await pair.service.metric("kvproxy_retries_total") == 1


async def test_a_request_about_a_response_ends_in_time() -> None:
    async with fleet(1, 1, stand_in=STORE | UNHURRIED) as pair:
        [engine], url = pair.engines.decode, pair.service.url + PATH
        response_id = (await pair.service.ask(PATH, body_of("hi"))).json["id"]
        assert (await asked(pair.service, "HEAD", response_id)).status == 405
        strikes: tuple[Fault, ...] = (
            Fault(kind="hang", path=f"{PATH}/", times=1),
            Fault(kind="stall", path=f"{PATH}/", after_bytes=50, times=1),
        )
        for fault in strikes:
            engine.faults.add(fault)
            late = await asked(pair.service, "GET", response_id, **{REQUEST_TIMEOUT_MS: "300"})
            assert (late.status, late.json["error"]["type"]) == (504, "GatewayTimeoutError")
        long = body_of("hi", background=True, stream=True, max_output_tokens=5000, ignore_eos=True)
        async with pair.service.session.post(url, json=long) as response:
            begun = await response.content.readuntil(b"response.output_text.delta")
        follow = f"{url}/{said_in(begun.rpartition(b'event: ')[0])[0]['response']['id']}?stream=true"
        assert "longer than its limit" in await last_words(pair.service, follow, "500")
        going = asyncio.Event()
        following = asyncio.get_running_loop().create_task(
            last_words(pair.service, follow, "60000", going), name="following"
        )
        await going.wait()
        await shut_down(pair.service.runner, 0.0, asyncio.Event())
        assert await following == "kvproxy is shutting down"


async def last_words(service: Service, url: str, limit_ms: str, going: asyncio.Event | None = None) -> str:
    """The words of the error with which a stream is cut; `going` is set once some of it is there."""
    heard = bytearray()
    try:
        async with service.session.get(url, headers={REQUEST_TIMEOUT_MS: limit_ms}) as response:
            async for chunk in response.content.iter_any():
                heard.extend(chunk)
                if going is not None:
                    going.set()
    except aiohttp.ClientPayloadError:
        return str(said_in(bytes(heard))[-1]["error"]["message"])
    raise AssertionError("the stream ended as a complete one")


async def test_a_response_is_its_clients_own(tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice sk-alice\nbob sk-bob\n")
    keys.chmod(0o600)
    alice, bob = ({"Authorization": f"Bearer sk-{name}"} for name in ("alice", "bob"))
    async with fleet(1, 1, stand_in=STORE, security=Security(api_key_file=keys)) as pair:
        response_id = (await pair.service.ask(PATH, body_of("hi"), **alice)).json["id"]
        assert (await asked(pair.service, "GET", response_id, **alice)).status == 200
        assert (await asked(pair.service, "GET", response_id)).status == 401
        assert found(await asked(pair.service, "GET", response_id, **bob), response_id) == ""
        body = body_of("more", previous_response_id=response_id)
        assert found(await pair.service.ask(PATH, body, **bob), response_id) == ""
        assert (await pair.service.ask(PATH, body, **alice)).status == 200


async def test_it_is_known_over_a_restart(tmp_path: pathlib.Path) -> None:
    async with engines(1, 2, **STORE) as made:
        config = made.config(state=State(state_dir=tmp_path / "state"))
        async with kvproxy(config) as service:
            first = await service.ask(PATH, body_of("hi"))
        async with kvproxy(config) as service:
            assert (await asked(service, "GET", first.json["id"])).json == first.json
