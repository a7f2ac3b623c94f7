"""Adapters are found as soon as they are loaded, wherever that was, and requests for unknown names cost next
to nothing.
"""

import asyncio
import json
import pathlib
from typing import Any

import pytest

from proxy.config import Health, Security
from proxy.edge.routes.adapters import overall_status
from proxy.scheduling.policies import LeastMs
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from proxy.tuning import Tuning
from tests.helpers.service import ADMIN_KEY, UNHURRIED, Answer, Pair, Service, ask, fleet, wait_until

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
UPDATES = {"lora_updates": True}
SELDOM = Health(interval_s=60.0)
"""What engines serve is not looked at by itself for the length of a test."""


async def load(service: Service, engine: StandIn, name: str, path: pathlib.Path) -> None:
    """Behind kvproxy's back."""
    body = {"lora_name": name, "lora_path": str(path)}
    async with service.session.post(engine.url + LOAD, json=body) as answer:
        assert answer.status == 200


def looks(pair: Pair) -> list[int]:
    return [engine.asked["/v1/models"] for engine in pair.engines.all]


async def test_an_adapter_that_nobody_listed_is_found_when_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    async with fleet(stand_in=UPDATES, health=SELDOM) as pair:
        for engine in pair.engines.all:
            await load(pair.service, engine, "beta", tmp_path)
        answer = await pair.service.complete("hello", model="beta")
        assert (answer.status, answer.json["model"]) == (200, "beta")
        assert "beta" in [card["id"] for card in (await pair.service.ask("/v1/models")).json["data"]]


async def test_names_that_are_nowhere_cost_one_look_for_all_who_ask() -> None:
    async with fleet(stand_in=UPDATES, health=SELDOM) as pair:
        before = looks(pair)
        answers = await asyncio.gather(*(pair.service.complete("x", model=f"gpt-{n}") for n in range(50)))
        assert {answer.status for answer in answers} == {404}
        assert answers[7].json["error"]["message"] == "The model `gpt-7` does not exist."
        assert (await pair.service.chat("x", model="gpt-50")).status == 404
        assert looks(pair) == [n + 1 for n in before]


async def test_a_name_that_was_nowhere_is_looked_for_again(tmp_path: pathlib.Path) -> None:
    async with fleet(stand_in=UPDATES, health=SELDOM, tuning=Tuning(list_again_s=0.0)) as pair:
        before = looks(pair)
        assert (await pair.service.complete("x", model="gpt-7")).status == 404
        for engine in pair.engines.all:
            await load(pair.service, engine, "gpt-7", tmp_path)
        assert (await pair.service.complete("x", model="gpt-7")).status == 200
        assert looks(pair) == [n + 2 for n in before]


async def test_an_engine_that_does_not_answer_holds_nobody_up_for_long(tmp_path: pathlib.Path) -> None:
    async with fleet(stand_in=UPDATES, health=SELDOM, tuning=Tuning(list_s=0.2)) as pair:
        pair.engines.prefill[0].faults.add(Fault(kind="hang", path="/v1/models"))
        for engine in pair.engines.all[1:]:
            await load(pair.service, engine, "beta", tmp_path)
        async with asyncio.timeout(10):
            assert (await pair.service.complete("hello", model="beta")).status == 200
            assert (await pair.service.complete("hello", model="gamma")).status == 404


async def tell(service: Service, route: str, **body: Any) -> Answer:
    return await service.admin(route, body)


async def test_loading_and_unloading_reach_every_engine_and_count_at_once(tmp_path: pathlib.Path) -> None:
    async with fleet(both=1, stand_in=UPDATES, health=SELDOM) as pair:
        answer = await tell(pair.service, LOAD, lora_name="beta", lora_path=str(tmp_path))
        assert answer.status == 200
        words = "Success: LoRA adapter 'beta' added successfully."
        assert answer.json["message"] == "5 of 5 engines did it"
        assert {e["instance"]: (e["status"], e["answer"]) for e in answer.json["engines"]} == {
            engine.address: (200, words) for engine in pair.engines.all
        }
        assert (await pair.service.complete("hello", model="beta")).status == 200
        again = await tell(pair.service, LOAD, lora_name="beta", lora_path=str(tmp_path))
        assert again.status == 400
        for each in again.json["engines"]:
            assert "already been loaded" in each["answer"]["error"]["message"]
        answer = await tell(pair.service, LOAD, lora_name="beta", lora_path=str(tmp_path), load_inplace=True)
        assert answer.status == 200
        assert (await tell(pair.service, UNLOAD, lora_name="beta")).status == 200
        assert (await pair.service.complete("hello", model="beta")).status == 404
        assert (await tell(pair.service, UNLOAD, lora_name="beta")).status == 404


async def test_the_answer_names_engines_that_disagree_or_do_not_answer(tmp_path: pathlib.Path) -> None:
    async with fleet(stand_in=UPDATES, health=SELDOM) as pair:
        first, second = pair.engines.prefill
        await load(pair.service, first, "beta", tmp_path)
        await second.refuse()
        answer = await tell(pair.service, LOAD, lora_name="beta", lora_path=str(tmp_path))
        assert answer.status == 502
        told = {each["instance"]: each for each in answer.json["engines"]}
        assert told[first.address]["status"] == 400
        assert told[second.address] == {
            "instance": second.address,
            "role": "prefill",
            "status": None,
            "answer": "connection refused",
        }
        assert (await pair.service.complete("hello", model="beta")).status == 200


async def test_engines_that_do_not_allow_loading_say_so() -> None:
    async with fleet(health=SELDOM) as pair:
        answer = await tell(pair.service, LOAD, lora_name="beta", lora_path="/x")
        assert answer.status == 404
        assert {json.dumps(each["answer"]) for each in answer.json["engines"]} == {'{"detail": "Not Found"}'}


@pytest.mark.parametrize("route", [LOAD, UNLOAD])
async def test_loading_needs_the_admin_key_and_no_client_key(route: str, tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("someone secret-of-some-length\n")
    keys.chmod(0o600)
    security = Security(api_key_file=keys)
    async with fleet(prefill=1, decode=1, stand_in=UPDATES, security=security) as pair:
        body = {"lora_name": "beta", "lora_path": str(tmp_path)}
        assert (await pair.service.ask(route, body)).status == 401
        named = await pair.service.ask(route, body, Authorization="Bearer secret-of-some-length")
        assert (named.status, named.json["error"]["param"]) == (401, "X-API-Key")
        assert (await pair.service.ask(route, body, X_API_Key="wrong")).status == 403
        assert not any(engine.asked[route] for engine in pair.engines.all)
        assert (await pair.service.ask(route, body, X_API_Key=ADMIN_KEY)).status in {200, 404}
        assert all(engine.asked[route] == 1 for engine in pair.engines.all)
        for broken in (b"", b"[]", b"{"):
            assert (await pair.service.ask(route, broken, X_API_Key=ADMIN_KEY)).status == 400


async def test_with_an_admin_port_adapters_are_loaded_there_alone(tmp_path: pathlib.Path) -> None:
    async with fleet(prefill=1, decode=1, stand_in=UPDATES, security=Security(admin_port=0)) as pair:
        body = {"lora_name": "beta", "lora_path": str(tmp_path)}
        assert (await tell(pair.service, LOAD, **body)).status == 404
        answer = await ask(pair.service.session, pair.service.admin_url, LOAD, body, X_API_Key=ADMIN_KEY)
        assert answer.status == 200
        assert (await pair.service.complete("hello", model="beta")).status == 200


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([200, 200], 200),
        ([400, 400], 400),
        ([404, 404], 404),
        ([401, 401], 502),
        ([500, 500], 502),
        ([200, 400], 502),
        ([200, None], 502),
        ([None, None], 502),
        ([], 502),
    ],
)
def test_the_status_is_that_of_all_engines_if_they_agree(statuses: list[int | None], status: int) -> None:
    assert overall_status(statuses) == status


async def test_no_answer_waits_behind_those_of_another_adapter() -> None:
    """While one adapter generates on an instance with one slot, requests for the other go elsewhere."""
    engines = UNHURRIED | {"loras": ("alpha", "beta")}
    async with fleet(0, 0, 2, policy=LeastMs(), stand_in=engines, scrape_s=0.05) as pair:

        def know_their_slots() -> bool:
            return all(each.gauges and each.gauges.adapter_slots == 1 for each in pair.service.fleet)

        await wait_until(know_their_slots, "how many adapters the engines serve at once")
        long = {"model": "alpha", "prompt": "a long one", "max_tokens": 2000, "stream": True}
        async with pair.service.session.post(
            f"{pair.service.url}/v1/completions", json=long | {"ignore_eos": True}
        ) as stream:
            assert await stream.content.readline()
            for number in range(4):
                answer = await pair.service.complete(f"another {number}", model="beta")
                assert (answer.status, answer.json["model"]) == (200, "beta")
            assert not stream.content.at_eof()
