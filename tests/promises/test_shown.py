"""Answers to operators are as `/openapi.json` describes them, whatever state the fleet is in."""

import pathlib
from typing import Any

import jsonschema
import pytest

from proxy.config import State
from proxy.edge.app_keys import SERVICE
from proxy.edge.routes.openapi import description
from proxy.phases import Phase
from proxy.scheduling.policies.least_ms import LeastMs
from proxy.simulation.api.model_files import write_model
from tests.helpers.service import ADMIN_KEY, Pair, fleet, prose, wait_until


def hold(answer: Any, schema: str) -> None:
    """`answer` is as the document has it, and has nothing else."""
    document = {"$ref": f"#/components/schemas/{schema}", "components": description()["components"]}
    jsonschema.Draft202012Validator(document).validate(answer)


async def see(pair: Pair) -> dict[str, Any]:
    """All that is told of the fleet, held to the document; returns `/status`."""
    service = pair.service
    for body in ({"prompt": prose(40)}, {"messages": [{"role": "user", "content": "hello"}], "odd": 1}):
        asked = {"model": "tiny", "max_tokens": 2, **body}
        hold((await service.ask("/explain", asked, X_API_Key=ADMIN_KEY)).json, "Explanation")
    hold((await service.ask("/nowhere")).json, "Error")
    status: dict[str, Any] = (await service.ask("/status")).json
    hold(status, "Status")
    return status


async def test_a_fleet_at_work_is_shown_as_described(tmp_path: pathlib.Path) -> None:
    write_model(tmp_path)
    state = State(state_dir=tmp_path / "state", state_interval_s=0.1)
    async with fleet(prefill=2, decode=1, both=1, tokenizer=str(tmp_path), state=state) as pair:
        service = pair.service
        await wait_until(lambda: bool(service.app[SERVICE].tokenizer.status().checked_with), "the comparison")
        for seed in (1, 1, 2):
            assert (await service.complete(prose(40, seed))).status == 200
        await wait_until(lambda: service.keeper.status().last_written_s is not None, "a snapshot")
        status = await see(pair)
        assert status["tokenizer"]["pieces"] is not None
        assert status["state_dir"]["bytes"] > 0
        assert {tuple(one["in_flight"]) for one in status["instances"]} == {
            ("prefill",),
            ("decode",),
            ("prefill", "decode"),
        }
        hold((await service.ask("/doctor", X_API_Key=ADMIN_KEY)).json, "DoctorReport")


async def test_predictions_are_shown_as_described() -> None:
    async with fleet(prefill=2, decode=2, policy=LeastMs()) as pair:
        assert (await pair.service.complete(prose(40))).status == 200
        await see(pair)


async def test_a_fleet_in_trouble_is_shown_as_described() -> None:
    async with fleet(prefill=2, decode=1, stand_in={"lora_updates": True}) as pair:
        service = pair.service
        prefill, other = pair.engines.prefill
        drained = await service.admin("/instances/drain", {"instance": prefill.address})
        hold(drained.json, "Changed")
        hold((await service.admin("/v1/unload_lora_adapter", {"lora_name": "none"})).json, "AdaptersTold")
        await other.stop()
        leg = service.fleet.claim(pair.engines.decode[0].address, 0, Phase.DECODE, 7)
        await wait_until(lambda: not service.fleet.ready, "its end")
        status = await see(pair)
        leg.end()
        assert status["ready"] is False
        shown = {one["instance"]: one for one in status["instances"]}
        assert shown[prefill.address]["state"] == "draining"
        assert shown[other.address]["why"]
        removed = await service.admin("/instances/remove", {"instance": prefill.address, "force": True})
        hold(removed.json, "Changed")


def test_the_document_is_broken_by_one_member_more() -> None:
    with pytest.raises(jsonschema.ValidationError):
        hold({"message": "", "instance": "a:1", "type": "both", "running_legs": 0, "more": 1}, "Changed")
