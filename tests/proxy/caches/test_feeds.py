"""Where an engine says it publishes becomes where we connect, or bind; what left is forgotten and swept."""

import asyncio
import json
import pathlib
import socket
from typing import Any

import pytest

from kvevents import BlockStored, NullObserver, PrefixIndex
from kvevents.subscriber import SourceAddress
from proxy.caches.event_addresses import read_sources
from proxy.caches.feeds import EventFeeds
from proxy.caches.told import NotAllowedError, ToldRules, events_bind
from proxy.config import AllowedInstances, Config, Security, parse_instance
from proxy.errors import ConfigError, LegError
from proxy.fleet import Instance
from proxy.phases import Role
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.live.faults import Fault
from proxy.tasks import TaskOwner
from scripts.workshop.live.ports import free_ports
from tests.helpers.service import Engines, fleet, kvproxy, wait_until
from tests.hostile.raw_engine import Pieces, answer, raw_engine


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
    assert read_sources(told, host, ToldRules()) == expected


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
        read_sources(told, "h", ToldRules())


def rules(*allowed: str, bind: str | None = "127.0.0.1") -> ToldRules:
    return ToldRules(AllowedInstances(allowed), bind)


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
    told: dict[str, Any], host: str, given: ToldRules, why: str
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
def test_what_an_operator_allows_is_followed(
    told: dict[str, Any], host: str, given: ToldRules, expected: tuple[str, str | None, bool]
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


def test_what_is_no_address_to_listen_on() -> None:
    with pytest.raises(ConfigError, match="--events-bind 'eth0' is not an address"):
        Security(events_bind="eth0")


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
