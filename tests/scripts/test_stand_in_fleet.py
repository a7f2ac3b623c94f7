"""A fleet of stand-ins does what a fleet of real engines does, from the same descriptions."""

import json
import pathlib
import urllib.request
from collections.abc import Iterator

import pytest

from proxy.simulation.__main__ import config_of, parser
from scripts.workshop.engines.engine import EngineSpec
from scripts.workshop.engines.fleet import plan
from scripts.workshop.engines.stand_in import StandInFleet, command


def test_an_engines_description_becomes_the_stand_ins_configuration() -> None:
    spec = EngineSpec(
        "p",
        1,
        "prefill",
        "nixl",
        side_port=2,
        events_port=3,
        replay_port=4,
        lease_s=20,
        loras=("alpha",),
        flags=("--enable-request-id-headers", "--max-num-queued-reqs=3"),
    )
    config = config_of(parser().parse_args(command(spec)[3:]))
    assert (config.port, config.side_port, config.events, config.replay) == (1, 2, 3, 4)
    assert (config.block_size, config.blocks, config.max_model_len) == (32, 512, 2048)
    assert (config.lease_s, config.loras, config.connector) == (20, ("alpha",), True)
    assert (config.request_id_headers, config.max_queued_requests) == (True, 3)


@pytest.mark.parametrize(
    "spec",
    [
        EngineSpec("a", 1, flags=("--tool-call-parser=llama3_json",)),
        EngineSpec("a", 1, "prefill", "shared"),
    ],
)
def test_what_a_stand_in_cannot_do_is_refused(spec: EngineSpec) -> None:
    with pytest.raises(ValueError, match="a: a stand-in"):
        command(spec)


@pytest.fixture
def fleet(tmp_path: pathlib.Path) -> Iterator[StandInFleet]:
    with StandInFleet(plan(prefill=1, decode=1), tmp_path, say=lambda _: None) as started:
        started.start()
        started.wait_healthy()
        yield started


def test_a_stand_in_dies_and_comes_back_on_its_ports(fleet: StandInFleet) -> None:
    before = fleet.pid("decode-0")
    fleet.kill("decode-0")
    assert fleet.died("decode-0")
    fleet.restart("decode-0")
    fleet.wait_healthy(["decode-0"])
    assert fleet.pid("decode-0") != before
    assert not fleet.died("prefill-0")


def test_a_stand_in_is_told_to_go_wrong(fleet: StandInFleet) -> None:
    order = urllib.request.Request(fleet.admin_url("prefill-0"), json.dumps({"do": "die"}).encode())
    order.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(order, timeout=5) as answer:
        assert json.load(answer)["dead"]
