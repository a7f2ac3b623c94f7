"""The bench of attacks says what an attack did, and fails for what is too much."""

import asyncio
import mmap
import pathlib
import subprocess
import sys
import time

from tests.hostile.attacks import ATTACKS
from tests.hostile.measuring import FIXED_MIB, Measured
from tests.hostile.target import Said
from tests.hostile.watched import PAUSE, Pulse

ROOT = pathlib.Path(__file__).resolve().parents[2]


def measured(**differences: float) -> Measured:
    said = Said(400, b"", 10 << 20)
    values = {"alive": True, "pause_ms": 20.0, "peak_mib": 40.0} | differences
    return Measured(ATTACKS["ids"], said, **values)  # type: ignore[arg-type]  # a bool and floats


def test_a_pause_a_peak_and_an_end_are_failures() -> None:
    assert measured().passed
    assert not measured(pause_ms=51.0).passed
    assert not measured(peak_mib=40 + FIXED_MIB + 1).passed
    assert not measured(alive=False).passed


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
