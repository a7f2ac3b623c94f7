"""The comparison with other routers measures what it says: both legs went through, and a wrong answer is no
figure.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from scripts.workshop.bench.peers import tools
from scripts.workshop.bench.peers.backend import Legs
from scripts.workshop.bench.peers.cases import CASES
from scripts.workshop.bench.peers.rounds import WrongError, check
from scripts.workshop.bench.peers.routers import Engines, Mode, kvproxy
from scripts.workshop.checkout import ROOT

PD = next(case for case in CASES if case.mode is Mode.PD)
ONE_LEG = next(case for case in CASES if case.mode is Mode.ONE_LEG)
TOLD = {"completed": 10, "errors": 0, "badstatus": 0, "incomplete": 0}
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, tools.COMPILERS)), reason="no C compiler: the next test says what is told then"
)


@needs_compiler
def test_kvproxy_alone_is_measured(tmp_path: pathlib.Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "bench_proxy.py"),
        "--alone",
        "--quick",
        "--rounds",
        "1",
    ]
    command += ["--only", "unary", "pd", "chunks-64", "memory"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    ours = rows[0].index("kvproxy")
    assert len(rows) == 2 + 4
    assert all(int(row[ours]) > 0 for row in rows[2:]), done.stdout


def test_without_a_compiler_it_says_what_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(tools.NoCompilerError, match="install gcc"):
        tools.build(tmp_path)


def test_a_load_that_went_right() -> None:
    router = kvproxy(Engines((1,), (2,)), Mode.PD)
    check(TOLD, Legs(prefill=10, decode=10, handed=10), router, PD)
    check(TOLD, Legs(prefill=0, decode=10, handed=0), router, ONE_LEG)


@pytest.mark.parametrize(
    ("told", "legs"),
    [
        pytest.param({"completed": 0}, Legs(0, 0, 0), id="nothing answered"),
        pytest.param({"badstatus": 1}, Legs(10, 10, 10), id="an error"),
        pytest.param({"incomplete": 1}, Legs(10, 10, 10), id="a stream with too few chunks"),
        pytest.param({"errors": 1}, Legs(10, 10, 10), id="a broken connection"),
        pytest.param({}, Legs(0, 10, 0), id="one leg alone"),
        pytest.param({}, Legs(10, 10, 9), id="a decode leg without the prefill's parameters"),
        pytest.param({}, Legs(11, 10, 10), id="a retry"),
    ],
)
def test_a_load_that_went_wrong_is_no_figure(told: dict[str, int], legs: Legs) -> None:
    with pytest.raises(WrongError):
        check(TOLD | told, legs, kvproxy(Engines((1,), (2,)), Mode.PD), PD)
