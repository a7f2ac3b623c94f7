"""The comparison with other routers measures what it says: both legs went through, and a wrong answer is no
figure.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import aiohttp
import pytest

import kvevents
from proxy import errors
from proxy.simulation.api.model_files import write_model
from proxy.tokenizing import LocalTokenizer, read_model
from scripts.workshop.bench.peers import bodies, publisher, tools
from scripts.workshop.bench.peers.backend import Legs
from scripts.workshop.bench.peers.bodies import Asked
from scripts.workshop.bench.peers.cases import CASES
from scripts.workshop.bench.peers.ours import Knew
from scripts.workshop.bench.peers.rounds import WrongError, check, check_knowledge
from scripts.workshop.bench.peers.routers import Engines, Mode, kvproxy
from scripts.workshop.checkout import ROOT
from scripts.workshop.live import sampled

PD = next(case for case in CASES if case.mode is Mode.PD)
ONE_LEG = next(case for case in CASES if case.mode is Mode.ONE_LEG)
TOLD = {"completed": 10, "errors": 0, "badstatus": 0, "incomplete": 0}
OURS = kvproxy(Engines((1,), (2,), {}), Mode.PD, tokenizer=pathlib.Path())
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
    command += ["--only", "unary", "pd", "ids", "text", "chunks-64", "memory"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    ours = rows[0].index("kvproxy")
    assert len(rows) == 2 + 6
    assert all(int(row[ours]) > 0 for row in rows[2:]), done.stdout


@needs_compiler
def test_the_cpu_of_kvproxy_is_told_by_room(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench_proxy.py"), "--profile", "--rounds", "1"]
    command += ["--only", "unary", "chunks-64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = {name: cells for name, *cells in lines}
    assert {"upstream", "edge", "serving", "scheduling", sampled.AIOHTTP} <= rows.keys()
    unary, chunk = (float(cell.split()[0]) for cell in rows["**in all**"])
    floor, none = rows["a proxy on aiohttp and httptools that does nothing"]
    assert 0 < float(floor) < unary, done.stdout
    assert 0 < chunk < unary
    assert none == "-"


def test_a_file_belongs_to_a_room() -> None:
    proxy = pathlib.Path(errors.__file__).parent
    assert sampled.room_of(str(proxy / "serving" / "legs" / "leg.py")) == "serving"
    assert sampled.room_of(str(proxy / "headers.py")) == sampled.SHARED
    assert sampled.room_of(str(proxy / "cli" / "main.py")) is None
    assert sampled.room_of(kvevents.__file__) == "kvevents"
    assert sampled.room_of(aiohttp.__file__) == sampled.AIOHTTP
    assert sampled.room_of(json.__file__) is None


def test_without_a_compiler_it_says_what_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(tools.NoCompilerError, match="install gcc"):
        tools.build(tmp_path)


def test_a_load_that_went_right() -> None:
    check(TOLD, Legs(prefill=10, decode=10, handed=10), OURS, PD)
    check(TOLD, Legs(prefill=0, decode=10, handed=0), OURS, ONE_LEG)


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
        check(TOLD | told, legs, OURS, PD)


def test_a_prompt_that_kvproxy_did_not_know_is_no_figure() -> None:
    check_knowledge(TOLD, Knew(prompts=10, predicted=1280, reported=1280))
    for known in (Knew(9, 1280, 1280), Knew(10, 0, 0), Knew(10, 1264, 1280)):
        with pytest.raises(WrongError):
            check_knowledge(TOLD, known)


def test_prompts_of_token_ids_begin_alike_in_whole_blocks() -> None:
    for body in bodies.token_ids(Asked(1 << 10, groups=2)):
        asked = json.loads(body.data)
        assert len(body.data) == pytest.approx(1 << 10, abs=100)
        assert body.data[body.number_at :].startswith(bodies.NUMBER_IDS.encode())
        assert asked["prompt"][: len(body.prefix)] == body.prefix
        assert len(body.prefix) % bodies.BLOCK == 0
        assert asked["user"] == f"tokens={len(asked['prompt'])} cached={len(body.prefix)}"


def test_a_chat_has_as_many_tokens_whatever_its_number_is(tmp_path: pathlib.Path) -> None:
    write_model(tmp_path)
    tokenizer = LocalTokenizer(read_model(tmp_path))
    for body in bodies.tokenized_chats(Asked(1 << 10, groups=2), tokenizer):
        for number in (bodies.NUMBER, "1,2,3,4,5,6,7,8,9"):
            asked = json.loads(body.data.replace(bodies.NUMBER.encode(), number.encode()))
            question = {"model": asked["model"], "messages": asked["messages"]}
            tokens = tokenizer.answer_now(json.dumps(question).encode())
            assert tokens is not None
            assert asked["user"] == f"tokens={len(tokens)} cached={len(body.prefix)}"
            assert tokens[: len(body.prefix)].tolist() == body.prefix
    tokenizer.close()


def test_engines_tell_of_no_block_twice() -> None:
    first = list(range(3 * bodies.BLOCK))
    fork = [*first[: 2 * bodies.BLOCK], *range(1000, 1000 + bodies.BLOCK)]
    told = list(publisher.runs([first, fork, first]))
    assert [(len(run.tokens), run.hashes, run.parent) for run in told] == [
        (3 * bodies.BLOCK, [1, 2, 3], None),
        (bodies.BLOCK, [4], 2),
    ]
