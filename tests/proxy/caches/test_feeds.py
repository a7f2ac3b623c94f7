"""kvproxy connects to, or listens at, the addresses at which an engine publishes; ranks that left are
forgotten and swept.
"""

import asyncio
from typing import Any

import pytest

from kvevents import BlockStored, NullObserver, PrefixIndex
from kvevents.subscriber import SourceAddress
from proxy.caches.address_rules import AddressRules, NotAllowedError, events_bind
from proxy.caches.event_addresses import read_sources
from proxy.caches.feeds import EventFeeds
from proxy.config import AllowedInstances, Config, Security, parse_instance
from proxy.errors import ConfigError, LegError
from proxy.fleet import Instance
from proxy.phases import Role
from proxy.tasks import TaskOwner
from scripts.workshop.live.ports import free_ports


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
            {"0": source("tcp://127.0.0.1:5557")},
            "127.0.0.1",
            [SourceAddress(0, "tcp://127.0.0.1:5557", None, bind=True)],
        ),
        (
            {"0": source("tcp://router:5557")},
            "h",
            [SourceAddress(0, "tcp://127.0.0.1:5557", None, bind=True)],
        ),
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
    assert read_sources(told, host, AddressRules()) == expected


@pytest.mark.parametrize(
    "told",
    [
        *(None, "x", {"0": 1}, {"x": source("tcp://*:1")}, {"0": {}}, [1], [{}], [None], [[]]),
        *([{"rank": rank, **source("tcp://*:1")}] for rank in (-1, 1024, 2**64, "x", 0.5)),
        [{"rank": 1, **source("tcp://*:1")}, source("tcp://*:2")],
        [source("tcp://*:1")] * 129,
        {str(rank): source("tcp://*:1") for rank in range(129)},
        *(
            {"0": source(endpoint)}
            for endpoint in (
                *(
                    "",
                    "tcp://",
                    "tcp://*",
                    "tcp://*:0",
                    "tcp://*:65536",
                    "tcp://h:x",
                    "udp://h:1",
                    "tcp://h:1 ",
                ),
                *(
                    "tcp://h\n2026-01-01 WARNING forged:1",
                    "tcp://[::1:1",
                    "tcp://a/b:1",
                    "tcp://h:1;tcp://i:2",
                ),
                *(
                    "tcp://eth0;h:1",
                    "tcp://\u0661:1",
                    "tcp://h:\u0661",
                    "epgm://eth0;239.0.0.1:1",
                    "tcp://" + "h" * 300,
                ),
            )
        ),
        {"0": source("tcp://*:1", "tcp://*:1\n")},
        {"0": source("tcp://*:1", topic="x" * 301)},
        {"publishers": [source("tcp://*:1")]},
        *({rank: source("tcp://*:1")} for rank in ("-1", "1024", str(2**64))),
    ],
)
def test_anything_else_is_an_error(told: Any) -> None:
    with pytest.raises(ValueError, match="kv_event_sources"):
        read_sources(told, "h", AddressRules())


def rules(*allowed: str, bind: str | None = "127.0.0.1") -> AddressRules:
    return AddressRules(AllowedInstances(allowed), bind)


@pytest.mark.parametrize(
    ("told", "host", "given", "why"),
    [
        (source("ipc:///run/kv"), "h", rules("h"), "ipc"),
        (source("inproc://links-0"), "h", rules("h"), "ipc"),
        (source("tcp://*:5557", "ipc:///run/kv"), "h", rules("h"), "ipc"),
        (source("tcp://*:5557", "tcp://other:22"), "h", rules(), "tcp://other:22 is another host"),
        (source("tcp://*:5557", "tcp://10.0.0.9:22"), "10.0.0.5", rules("10.1.0.0/16"), "another host"),
        (
            source("tcp://*:5557", "tcp://[fe80::1]:22"),
            "10.0.0.5",
            rules(),
            r"tcp://\[fe80::1\]:22 is another",
        ),
        (source("tcp://*:5557", "tcp://127.0.0.1:22"), "10.0.0.5", rules(), "another host"),
        (source("tcp://10.0.0.9:5557"), "h", rules(), "listens for events on 127.0.0.1 alone"),
        (source("tcp://127.0.0.1:5557"), "h", rules(bind="10.0.0.9"), "listens for events on 10.0.0.9 alone"),
        (source("tcp://127.0.0.1:5557"), "h", rules(bind=None), "listens nowhere: give --events-bind"),
        (source("tcp://127.0.0.1:22"), "h", rules(), "no port below 1024"),
        (source("tcp://router:80"), "h", rules(bind="0.0.0.0"), "no port below 1024"),
    ],
)
def test_an_engine_may_not_name_just_any_address(
    told: dict[str, Any], host: str, given: AddressRules, why: str
) -> None:
    with pytest.raises(NotAllowedError, match=why):
        read_sources([told], host, given)


@pytest.mark.parametrize(
    ("told", "host", "given", "expected"),
    [
        (
            source("tcp://*:1", "tcp://10.1.0.9:2"),
            "10.0.0.5",
            rules("10.1.0.0/16"),
            ("tcp://10.0.0.5:1", "tcp://10.1.0.9:2", False),
        ),
        (
            source("tcp://*:1", "tcp://gpu7.cluster:2"),
            "gpu6.cluster",
            rules("gpu*.cluster"),
            ("tcp://gpu6.cluster:1", "tcp://gpu7.cluster:2", False),
        ),
        (source("tcp://*:1", "tcp://H:2"), "h", rules(), ("tcp://h:1", "tcp://h:2", False)),
        (
            source("tcp://*:1", "tcp://127.0.0.1:2"),
            "localhost",
            rules(),
            ("tcp://localhost:1", "tcp://127.0.0.1:2", False),
        ),
        (
            source("tcp://10.0.0.9:5557"),
            "h",
            rules(bind="10.0.0.9"),
            ("tcp://10.0.0.9:5557", None, True),
        ),
        (source("tcp://10.0.0.9:5557"), "h", rules(bind="0.0.0.0"), ("tcp://10.0.0.9:5557", None, True)),
        (source("tcp://[fd00::9]:5557"), "h", rules(bind="::"), ("tcp://[fd00::9]:5557", None, True)),
        (source("tcp://router:5557"), "h", rules(bind="::"), ("tcp://[::]:5557", None, True)),
        (source("tcp://localhost:5557"), "h", rules(bind="0.0.0.0"), ("tcp://127.0.0.1:5557", None, True)),
        (source("tcp://router:5557"), "h", rules(bind="10.0.0.9"), ("tcp://10.0.0.9:5557", None, True)),
    ],
)
def test_addresses_that_an_operator_allows_are_followed(
    told: dict[str, Any], host: str, given: AddressRules, expected: tuple[str, str | None, bool]
) -> None:
    (found,) = read_sources([told], host, given)
    assert (found.endpoint, found.replay_endpoint, found.bind) == expected


@pytest.mark.parametrize(
    ("host", "flag", "bound"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("0.0.0.0", None, "0.0.0.0"),
        ("localhost", None, "127.0.0.1"),
        ("router.example", None, None),
        ("0.0.0.0", "10.0.0.5", "10.0.0.5"),
        ("0.0.0.0", "off", None),
    ],
)
def test_events_are_listened_for_where_clients_are_unless_told_otherwise(
    host: str, flag: str | None, bound: str | None
) -> None:
    assert events_bind(Config(model="m", host=host, security=Security(events_bind=flag))) == bound


def test_addresses_that_cannot_be_listened_on() -> None:
    with pytest.raises(ConfigError, match="--events-bind 'eth0' is not an address"):
        Security(events_bind="eth0")


class Silent:
    async def exchange(self, method: str, instance: str, path: str, *_: Any, **__: Any) -> tuple[int, bytes]:
        assert path == "/metrics", "its sources were told"
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
