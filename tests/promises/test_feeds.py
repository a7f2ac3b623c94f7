"""kvproxy connects to, or listens at, the addresses at which an engine says that it publishes."""

import json
import pathlib
import socket
from typing import Any

import pytest

from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.live.faults import Fault
from scripts.workshop.live.ports import free_ports
from tests.helpers.service import Engines, fleet, kvproxy, wait_until
from tests.hostile.raw_engine import Pieces, answer, raw_engine


def source(endpoint: str, replay: str | None = None, topic: str = "") -> dict[str, Any]:
    return {"endpoint": endpoint, "replay_endpoint": replay, "topic": topic, "buffer_steps": 10_000, "hwm": 1}


def open_files() -> int:
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("ranks", "metrics", "why"),
    [
        (1024, 1024, "is not understood"),
        (128, 1, "it names 128 ranks, and its /metrics lists 1"),
        (9, None, "it names 9 ranks, and its /metrics does not answer"),
    ],
)
async def test_ranks_that_nobody_else_knows_of_cost_nothing(
    ranks: int, metrics: int | None, why: str
) -> None:
    (port,) = free_ports(1)
    told = json.dumps({str(n): source(f"tcp://*:{port}", f"tcp://*:{port}") for n in range(ranks)}).encode()
    says: dict[str, Pieces] = {"/kv_event_sources": answer(told)}
    if metrics is not None:
        line = 'vllm:cache_config_info{engine="%d",num_gpu_blocks="9"} 1\n'
        says["/metrics"] = answer("".join(line % n for n in range(metrics)).encode())
    async with raw_engine(says) as bad, fleet(prefill=1, decode=1) as pair:
        before = open_files()
        added = await pair.service.admin("/instances/add", {"instance": bad.address, "type": "prefill"})
        assert added.status == 200
        (shown,) = [
            i for i in (await pair.service.ask("/status")).json["instances"] if i["instance"] == bad.address
        ]
        assert why in shown["ranks"][0]["why"]
        assert open_files() - before < 20


@pytest.mark.parametrize("metrics", [10, 0])
async def test_ranks_that_the_metrics_list_are_followed_and_so_where_they_list_none(metrics: int) -> None:
    (port,) = free_ports(1)
    told = json.dumps({str(n): source(f"tcp://*:{port}") for n in range(10)}).encode()
    line = 'vllm:cache_config_info{engine="%d",num_gpu_blocks="9"} 1\n'
    page = "".join(line % n for n in range(metrics)).encode()
    says = {"/kv_event_sources": answer(told), "/metrics": answer(page)}
    async with raw_engine(says) as large, fleet(prefill=1, decode=1) as pair:
        added = await pair.service.admin("/instances/add", {"instance": large.address, "type": "prefill"})
        assert added.status == 200
        instance = pair.service.fleet.get(large.address)
        assert instance is not None
        assert sorted(instance.sources) == list(range(10))


async def test_an_engine_makes_kvproxy_listen_and_connect_nowhere_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other, _ = sockets = [socket.create_server(("127.0.0.2", 0)) for _ in range(2)]
    port = other.getsockname()[1]
    told = json.dumps(
        [source("tcp://*:5557", f"tcp://127.0.0.2:{port}"), source("tcp://127.0.0.3:5999")]
    ).encode()
    async with raw_engine({"/kv_event_sources": answer(told)}) as bad, fleet(prefill=1, decode=1) as pair:
        address = bad.address
        added = await pair.service.admin("/instances/add", {"instance": address, "type": "prefill"})
        assert added.status == 200
        (shown,) = [
            i for i in (await pair.service.ask("/status")).json["instances"] if i["instance"] == address
        ]
        assert "127.0.0.3:5999, and kvproxy listens for events on 127.0.0.1 alone" in shown["ranks"][0]["why"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.3", 5999), 5).close()
    for each in sockets:
        each.close()
    assert len([r for r in caplog.records if "that it may not name" in r.getMessage()]) == 1


@pytest.mark.parametrize("form", ["object", "array"])
async def test_either_form_is_followed(form: str) -> None:
    async with fleet(prefill=1, decode=1, stand_in={"sources_form": form, "ranks": 2}) as pair:
        prompt = list(range(100, 300))
        for _ in range(2):
            assert (await pair.service.complete(prompt)).status == 200
        ranks = (await pair.service.ask("/status")).json["instances"][0]["ranks"]
        assert [(rank["rank"], rank["index"], rank["why"]) for rank in ranks] == [
            (0, "exact", None),
            (1, "exact", None),
        ]


@pytest.mark.parametrize(
    ("settings", "fault", "said"),
    [
        ({"sources_form": "other"}, None, "is not understood"),
        ({"events": None, "replay": None}, None, "publishes no KV events"),
        ({}, Fault(kind="status", path="/kv_event_sources", status=404), "status 404"),
    ],
)
async def test_why_nothing_is_heard_is_said_in_its_own_words(
    settings: dict[str, Any], fault: Fault | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with StandIn() as decode, StandIn(StandInConfig(**settings)) as prefill:
        if fault is not None:
            prefill.faults.add(fault)
        made = Engines([prefill], [decode], [])
        async with kvproxy(made.config()) as service:
            assert (await service.complete(list(range(100, 300)))).status == 200
            of_prefill, of_decode = (await service.ask("/status")).json["instances"]
        assert said in of_prefill["ranks"][0]["why"]
        assert of_decode["ranks"][0]["why"] is None
    lines = [
        r.getMessage()
        for r in caplog.records
        if prefill.address in r.getMessage() and "load alone" in r.getMessage()
    ]
    assert len(lines) == 1
    assert said in lines[0]
    assert ("publishes no KV events" in lines[0]) is (said == "publishes no KV events")


async def test_an_instance_that_is_added_again_and_publishes_nothing_is_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fleet(prefill=1, decode=1) as pair, StandIn(StandInConfig(events=None, replay=None)) as new:
        named = {"type": "decode", "instance": new.address}
        for times in (1, 2):
            assert (await pair.service.admin("/instances/add", named)).status == 200
            told = [r.getMessage() for r in caplog.records if "publishes no KV events" in r.getMessage()]
            assert len(told) == times
            assert (await pair.service.admin("/instances/remove", named)).status == 200
            await wait_until(lambda: pair.service.fleet.get(new.address) is None, "it has left")
