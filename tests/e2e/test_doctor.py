"""The doctor finds nothing wrong with engines as they should be, and says what is wrong with a flag that is
not."""

import pathlib

import aiohttp

from scripts.workshop.engines.engine import Role
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from tests.e2e.doctors import LIMIT_S, doctor, not_passed


def addresses(fleet: Fleet, role: Role) -> list[str]:
    return [spec.address for spec in fleet.of_role(role)]


def test_healthy_engines_pass_in_every_step(fleet: Fleet, logs: pathlib.Path) -> None:
    prefill, decode = addresses(fleet, "prefill"), addresses(fleet, "decode")
    code, report = doctor(prefill, decode, logs / "doctor.log")
    assert not_passed(report) == []
    assert code == report["exit_code"] == 0
    assert [i["instance"] for i in report["instances"]] == prefill + decode
    steps = {f["step"] for f in report["instances"][0]["findings"]}
    assert steps >= {"replay", "wire_format", "probe_event", "cached_tokens", "clock", "prefix_caching"}
    assert len(report["pairs"]) == len(prefill) * len(decode)
    for pair in report["pairs"]:
        [step] = [f for f in pair["findings"] if f["step"] == "hand_over"]
        assert "and computed 0," in step["words"]


async def test_the_running_service_is_told_the_same(
    session: aiohttp.ClientSession, fleet: Fleet, proxy: ProxyProcess
) -> None:
    limit = aiohttp.ClientTimeout(total=LIMIT_S + 60)
    async with session.get(
        f"{proxy.url}/doctor", headers={"X-API-Key": proxy.admin_key}, timeout=limit
    ) as answer:
        assert answer.status == 200
        report = await answer.json()
    # How right predictions were tells of the tests before as well, some of which evict.
    assert [finding for finding in not_passed(report) if finding["step"] != "accuracy"] == []
    assert {i["instance"] for i in report["instances"]} == {
        *addresses(fleet, "prefill"),
        *addresses(fleet, "decode"),
    }


def test_a_wrong_event_port_is_named_with_the_right_one(fleet: Fleet, logs: pathlib.Path) -> None:
    [nobody] = free_ports(1)
    spec = fleet["prefill-0"]
    code, report = doctor(
        [f"{spec.address}?events=tcp://127.0.0.1:{nobody}"], [fleet["decode-0"].address], logs / "doctor.log"
    )
    assert code == 2
    [wrong] = [f for f in not_passed(report) if f["status"] == "fail"]
    assert wrong["step"] == "events_connected"
    assert f"tcp://127.0.0.1:{spec.events_port}" in wrong["remedy"]
