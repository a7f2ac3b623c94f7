"""The bench of attacks says what an attack did, and fails for what is too much."""

import asyncio
import dataclasses
import mmap
import pathlib
import subprocess
import sys
import time

import pytest

from scripts.workshop.live.watched import PAUSE, Pulse
from tests.hostile.attacks import ATTACKS, MB
from tests.hostile.measuring import ALONE_MIB, MAX_AT_ONCE, Measured, Taken, by_median, volley_of
from tests.hostile.target import Said

ROOT = pathlib.Path(__file__).resolve().parents[2]


def taken(*, pause_ms: float = 20.0, peak_mib: float = 40.0, connections: int = 1) -> Taken:
    return Taken(Said(400, b"", 10 << 20, connections=connections), pause_ms, peak_mib, ALONE_MIB)


def measured(*, alive: bool = True, volley: Taken | None = None, **differences: float) -> Measured:
    alone = taken(**differences)  # type: ignore[arg-type]  # its numbers
    return Measured(ATTACKS["ids"], alive, alone, volley or alone)


def test_a_pause_a_peak_and_an_end_are_failures() -> None:
    assert measured().passed
    assert not measured(pause_ms=51.0).passed
    assert not measured(peak_mib=40 + ALONE_MIB + 1).passed
    assert not measured(volley=taken(peak_mib=40 + ALONE_MIB + 10, connections=100)).passed
    assert not measured(volley=taken(pause_ms=51.0, connections=100)).passed
    assert not measured(alive=False).passed


@pytest.mark.parametrize(
    ("pauses_ms", "counts_ms"),
    [([20, 90, 90], 20), ([63, 17, 18], 18), ([90, 17, 80], 80), ([51, 52, 53], 52)],
)
def test_a_pause_that_does_not_come_again_does_not_count(pauses_ms: list[float], counts_ms: float) -> None:
    left = [measured(pause_ms=each) for each in reversed(pauses_ms)]
    assert by_median(left.pop).pause_ms == counts_ms


def test_an_attack_that_ended_kvproxy_is_not_outvoted() -> None:
    left = [measured(), measured(pause_ms=60, alive=False), measured(pause_ms=60)]
    assert not by_median(left.pop).alive


@pytest.mark.parametrize(
    ("sent_bytes", "repeats", "at_once"),
    [
        (MB, True, 16),
        (10_000, True, MAX_AT_ONCE),  # no more connections than that
        (60 * MB, True, 1),
        (MB, False, 1),
        (0, True, 1),
    ],
)
def test_a_short_body_comes_many_times_at_once(sent_bytes: int, repeats: bool, at_once: int) -> None:
    attack = dataclasses.replace(ATTACKS["ids"], repeats=repeats)
    assert volley_of(attack, Said(200, b"", sent_bytes)) == at_once


def test_the_pulse_tells_how_long_the_loop_stood_still(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "pulse"
    file.write_bytes(PAUSE.pack(0.0))

    async def stand_still() -> None:
        Pulse(file).start(asyncio.get_running_loop())
        await asyncio.sleep(0.02)
        time.sleep(0.2)  # noqa: ASYNC251  # what is to be noticed
        await asyncio.sleep(0.02)

    asyncio.run(stand_still())
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as told:
        assert 0.15 < PAUSE.unpack(told[: PAUSE.size])[0] < 5


def test_an_attack_is_made_on_a_kvproxy_of_its_own(tmp_path: pathlib.Path) -> None:
    command = [
        sys.executable,
        "scripts/bench_hostile.py",
        "--only",
        "long-content-type",
        "--logs",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "415" in done.stdout, done.stdout + done.stderr
