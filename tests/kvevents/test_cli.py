"""`python -m kvevents` as a process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvevents.tail import Tail
from tests.kvevents.publisher import Publisher, free_port

DEADLINE_S = 30.0

STORED = {
    "type": "BlockStored",
    "block_hashes": [0x1122334455667788, b"\xab" * 32, 3],
    "parent_block_hash": None,
    "token_ids": list(range(100, 112)),
    "block_size": 4,
    "medium": "GPU",
    "lora_name": "alpha",
}
REMOVED = {"type": "BlockRemoved", "block_hashes": [3], "medium": "GPU"}
CLEARED = {"type": "AllBlocksCleared"}


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher(
        f"tcp://127.0.0.1:{free_port()}",
        f"tcp://127.0.0.1:{free_port()}",
        lose=lambda number: number in {3, 4},
    )
    yield publisher
    publisher.close()


def arguments(publisher: Publisher) -> list[str]:
    assert publisher.replay_endpoint is not None
    return [publisher.endpoint.removeprefix("tcp://"), "--replay", publisher.replay_endpoint]


@asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kvevents",
        *arguments,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def lines_until(process: Process, text: str) -> list[str]:
    """The output up to and with the line that contains `text`."""
    assert process.stdout is not None
    lines = []
    async with asyncio.timeout(DEADLINE_S):
        while raw := await process.stdout.readline():
            lines.append(raw.decode().rstrip("\n"))
            if text in lines[-1]:
                return lines
    raise AssertionError(f"{text!r} is not in {lines}")


async def end(process: Process, number: int) -> tuple[list[str], str]:
    process.send_signal(number)
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    return out.decode().splitlines(), err.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_tail_for_people(publisher: Publisher, number: int) -> None:
    publisher.publish(STORED)
    publisher.settle()
    async with running(*arguments(publisher)) as process:
        head = await lines_until(process, "index is exact")
        publisher.publish(REMOVED, {"type": "BlockMoved"})
        publisher.publish(CLEARED)
        for _ in range(3):
            publisher.publish(STORED)
        body = await lines_until(process, "replay: 3 new batches")
        tail, errors = await end(process, number)
    assert process.returncode == 0
    assert errors == ""
    assert head[0].startswith("following tcp://127.0.0.1:")
    assert "#0 " in head[1]
    assert "stored   3 blocks of 4  GPU  11223344 abababab .. after -  tokens 100 101 102 103" in head[1]
    assert head[1].endswith("lora alpha  | held 3 stored 3 removed 0")
    text = "\n".join(body)
    assert "removed  1 block  GPU  00000000  | held 2 stored 3 removed 1" in text
    assert "--- dropped 1: unknown_type ---" in text
    assert "cleared  2 blocks" in text
    assert "--- GAP: 2 batches missing ---" in text
    assert "\033" not in "\n".join(head + body + tail)
    assert tail[-1].startswith("totals: 3 blocks held, 12 stored, 1 removed, 6 batches, 1 gap (2 missing)")


async def test_a_tail_for_programs(publisher: Publisher) -> None:
    publisher.publish(STORED)
    publisher.publish(REMOVED, {**STORED, "extra_keys": [["s", b"raw"], None, None]})
    publisher.settle()
    async with running(*arguments(publisher), "--json") as process:
        head = await lines_until(process, '"exact"')
        tail, errors = await end(process, signal.SIGINT)
    assert (process.returncode, errors) == (0, "")
    told: list[dict[str, Any]] = [json.loads(line) for line in head + tail]
    types = [line["type"] for line in told]
    assert types == ["BlockStored", "BlockRemoved", "BlockStored", "replay", "state", "totals"]
    assert told[0]["block_hashes"] == ["1122334455667788", "ab" * 32, "0000000000000003"]
    assert told[0]["first_token_ids"] == list(range(100, 108))
    assert told[0]["number"] == 0
    assert told[1]["totals"] == {"held": 2, "stored": 3, "removed": 1}
    assert told[-1]["held"] == 3


async def test_a_restart_is_marked(publisher: Publisher) -> None:
    publisher.publish(STORED)
    publisher.settle()
    async with running(*arguments(publisher)) as process:
        await lines_until(process, "index is exact")
        publisher.close()
        await lines_until(process, "index is unknown")
        second = Publisher(publisher.endpoint, publisher.replay_endpoint)
        try:
            second.publish(STORED)
            body = await lines_until(process, "index is exact")
        finally:
            second.close()
        tail, _ = await end(process, signal.SIGTERM)
    assert body[0] == "--- RESTART: another process publishes here, all blocks forgotten ---"
    assert tail[-1].endswith("1 restart")


async def test_a_reader_that_leaves_ends_it_quietly(publisher: Publisher) -> None:
    publisher.publish(STORED)
    command = (
        f'"{sys.executable}" -m kvevents {" ".join(arguments(publisher))} | head -n 2; echo '
        '"${PIPESTATUS[0]}"'
    )
    process = await asyncio.create_subprocess_exec("bash", "-c", command, stdout=PIPE, stderr=PIPE)

    async def keep_publishing() -> None:
        while True:
            publisher.publish(REMOVED)
            await asyncio.sleep(0.05)

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        publishing = tasks.create_task(keep_publishing())
        out, err = await process.communicate()
        publishing.cancel()
    assert err == b""
    lines = out.decode().splitlines()
    assert len(lines) == 3
    assert lines[-1] == "0"


async def test_silence_is_explained_once() -> None:
    async with running(f"127.0.0.1:{free_port()}") as process:
        assert process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            line = (await process.stderr.readline()).decode()
        out, rest = await end(process, signal.SIGINT)
    assert line.startswith("nothing heard for 3 s: not connected; check that the engine is up")
    assert rest == ""
    assert out[-1].startswith("totals: 0 blocks held")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["localhost"], "HOST:PORT"),
        (["127.0.0.1:0"], "HOST:PORT"),
        (["127.0.0.1:65536"], "HOST:PORT"),
        (["http://127.0.0.1:5557"], "HOST:PORT"),
        (["::1:5557"], "HOST:PORT"),
        (["127.0.0.1:5557", "--replay", "5657"], "--replay"),
        (["*:5557"], "--bind"),
        (["*:5557", "--bind", "--replay", "*:5657"], "--replay"),
        ([], "HOST:PORT"),
    ],
)
def test_a_bad_address_is_one_line_and_code_2(arguments: list[str], named: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvevents", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:5557", "tcp://127.0.0.1:5557"),
        ("tcp://engine-0.pod_a:5557", "tcp://engine-0.pod_a:5557"),
        ("[::1]:5557", "tcp://[::1]:5557"),
        ("*:05557", "tcp://*:5557"),
    ],
)
def test_addresses(text: str, endpoint: str) -> None:
    from kvevents.__main__ import parser

    assert parser().parse_args([text]).endpoint == endpoint


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
async def test_colour_only_on_a_terminal(
    publisher: Publisher, environment: dict[str, str], coloured: bool
) -> None:
    publisher.publish(STORED)
    publisher.settle()
    ours, theirs = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvevents", *arguments(publisher)),
            stdout=theirs,
            env={**os.environ, "NO_COLOR": "", "TERM": "xterm", **environment},
        )
        shown = b""
        async with asyncio.timeout(DEADLINE_S):
            while b"exact" not in shown:
                shown += await asyncio.to_thread(os.read, ours, 4096)
        process.terminate()
        assert await process.wait() == 0
    finally:
        os.close(theirs)
        os.close(ours)
    assert (b"\033[32mstored" in shown) is coloured
    assert (b"\033" in shown) is coloured


def test_a_replay_that_brings_nothing_again_is_not_told() -> None:
    lines: list[str] = []
    tail = Tail(lines.append)
    for batches, complete in ((0, True), (0, True), (2, True), (0, True), (0, False), (0, True), (0, True)):
        tail.replay(instance="a", rank=0, batches=batches, complete=complete)
    assert lines == [
        "--- replay: 0 new batches ---",
        "--- replay: 2 new batches ---",
        "--- replay: no answer, or none to its end ---",
        "--- replay: 0 new batches ---",
    ]


def test_colour_and_an_engines_text_cannot_steer_the_terminal() -> None:
    from kvevents.events import BlockStored

    lines: list[str] = []
    tail = Tail(lines.append, colour=True)
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    tail.store("e", 0, BlockStored([1], None, [1], 1, medium="\x1b[2J", lora_name="\x1b]0;x\x07"))
    tail.store("e", 0, BlockStored([1], None, [1], 1, extra_keys=[nested]))
    assert lines[0].count("\x1b") == lines[1].count("\x1b") == 2
    assert "\x07" not in lines[0]
    json_lines: list[str] = []
    Tail(json_lines.append, as_json=True).store("e", 0, BlockStored([1], None, [1], 1, extra_keys=[nested]))
    assert json.loads(json_lines[0])["extra_keys"] == "(nested too deeply)"
    while nested:
        nested = nested.pop()
