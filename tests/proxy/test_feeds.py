"""Where an engine says it publishes becomes where we connect, or bind; what left is forgotten and swept."""

import asyncio
from typing import Any

import pytest
from live.ports import free_ports

from kvevents import BlockStored, NullObserver, PrefixIndex, SourceAddress
from proxy.config import Role, parse_instance
from proxy.discovery.event_sources import read_sources
from proxy.discovery.feeds import EventFeeds
from proxy.errors import LegError
from proxy.instances import Instance
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.faults import Fault
from proxy.tasks import TaskOwner
from tests.proxy.service import Engines, fleet, kvproxy, wait_until


def source(endpoint: str, replay: str | None = None, topic: str = "") -> dict[str, Any]:
    return {"endpoint": endpoint, "replay_endpoint": replay, "topic": topic, "buffer_steps": 10_000, "hwm": 1}


@pytest.mark.parametrize(
    ("told", "host", "expected"),
    [
        ({}, "h", []),
        (
            {"0": source("tcp://*:5557", "tcp://*:5657", "kv")},
            "10.0.0.5",
            [SourceAddress(0, "tcp://10.0.0.5:5557", "tcp://10.0.0.5:5657", "kv")],
        ),
        ({"0": source("tcp://0.0.0.0:1")}, "h", [SourceAddress(0, "tcp://h:1", None)]),
        ({"0": source("tcp://[::]:1")}, "[::1]", [SourceAddress(0, "tcp://[::1]:1", None)]),
        ({"0": source("tcp://h:1")}, "h", [SourceAddress(0, "tcp://h:1", None)]),
        (
            {"0": source("tcp://127.0.0.1:1")},
            "127.0.0.1",
            [SourceAddress(0, "tcp://127.0.0.1:1", None, bind=True)],
        ),
        ({"0": source("tcp://router:1")}, "h", [SourceAddress(0, "tcp://router:1", None, bind=True)]),
        ({"0": source("ipc:///run/kv")}, "h", [SourceAddress(0, "ipc:///run/kv", None)]),
        (
            [
                {"data_parallel_rank": 1, **source("tcp://*:5558")},
                {"data_parallel_rank": 0, **source("tcp://*:5557")},
            ],
            "h",
            [SourceAddress(0, "tcp://h:5557", None), SourceAddress(1, "tcp://h:5558", None)],
        ),
        ([], "h", []),
        (
            [{"rank": "3", **source("tcp://*:1")}, {"dp_rank": 2, "endpoint": "tcp://*:2", "topic": None}],
            "h",
            [SourceAddress(2, "tcp://h:2", None), SourceAddress(3, "tcp://h:1", None)],
        ),
        (
            [source("tcp://*:1"), source("tcp://*:2", topic="t")],
            "h",
            [SourceAddress(0, "tcp://h:1", None), SourceAddress(1, "tcp://h:2", None, "t")],
        ),
        (
            {"1": source("tcp://*:5558"), "0": source("tcp://*:5557")},
            "h",
            [SourceAddress(0, "tcp://h:5557", None), SourceAddress(1, "tcp://h:5558", None)],
        ),
    ],
)
def test_sources_are_read_as_vllm_means_them(told: Any, host: str, expected: list[SourceAddress]) -> None:
    assert read_sources(told, host) == expected


@pytest.mark.parametrize(
    "told",
    [
        *(None, "x", {"0": 1}, {"x": source("tcp://*:1")}, {"0": {}}, [1], [{}], [None], [[]]),
        *([{"rank": rank, **source("tcp://*:1")}] for rank in (-1, 1024, 2**64, "x", 0.5)),
        [{"rank": 1, **source("tcp://*:1")}, source("tcp://*:2")],
        [source("tcp://*:1")] * 1025,
        {"publishers": [source("tcp://*:1")]},
        *({rank: source("tcp://*:1")} for rank in ("-1", "1024", str(2**64))),
    ],
)
def test_anything_else_is_an_error(told: Any) -> None:
    with pytest.raises(ValueError, match="kv_event_sources"):
        read_sources(told, "h")


class Silent:
    async def get_json(self, instance: str, path: str, timeout_s: float) -> Any:
        raise AssertionError("its sources were told")

    async def get_text(self, instance: str, path: str, timeout_s: float) -> str:
        raise LegError(instance, "it tells nothing")


async def test_an_instance_that_left_is_swept_although_nothing_comes_any_more() -> None:
    index, tasks = PrefixIndex(), TaskOwner("test")
    feeds = EventFeeds(Silent(), index, NullObserver(), tasks)
    (port,) = free_ports(1)
    instance = Instance(parse_instance(f"127.0.0.1:1?events=tcp://127.0.0.1:{port}", Role.PREFILL))
    await feeds.follow(instance)
    await asyncio.sleep(0)  # the subscriber forgets what was there before it
    run = BlockStored(list(range(5_000)), None, list(range(10_000)), 2)
    index.store(instance.address, 0, run)
    await feeds.unfollow(instance)
    assert not any(index.blocks().values())
    assert await tasks.drained(10)
    assert not index.sweep()
    assert len(index._residency) == 0
    feeds.close()


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
