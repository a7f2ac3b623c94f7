"""Where an engine says it publishes becomes where we connect, or bind; what left is forgotten and swept."""

import asyncio
from typing import Any

import pytest
from live.ports import free_ports

from kvevents import BlockStored, NullObserver, PrefixIndex, SourceAddress
from proxy.config import Role, parse_instance
from proxy.discovery.feeds import EventFeeds, read_sources
from proxy.errors import LegError
from proxy.instances import Instance
from proxy.tasks import TaskOwner


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
            {"1": source("tcp://*:5558"), "0": source("tcp://*:5557")},
            "h",
            [SourceAddress(0, "tcp://h:5557", None), SourceAddress(1, "tcp://h:5558", None)],
        ),
    ],
)
def test_sources_are_read_as_vllm_means_them(
    told: dict[str, Any], host: str, expected: list[SourceAddress]
) -> None:
    assert read_sources(told, host) == expected


@pytest.mark.parametrize(
    "told",
    [
        *(None, [], "x", {"0": 1}, {"x": source("tcp://*:1")}, {"0": {}}),
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
