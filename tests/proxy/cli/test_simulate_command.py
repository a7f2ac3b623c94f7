"""`kvproxy simulate` prints a table, writes every figure, and says what is wrong with its words."""

import gzip
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from proxy.cli.main import main
from proxy.latency.profiles import EngineSize, ProfileFile, written
from proxy.scheduling.types import Candidate, Leg
from proxy.simulation.replay.comparison import names_of_policies

REQUESTS = [
    {"timestamp": 500 * n, "input_length": 700 + n, "output_length": 5, "hash_ids": [n % 3, 100 + n]}
    for n in range(12)
]


@pytest.fixture
def trace(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "traffic.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, REQUESTS)).encode()))
    return str(path)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_table_has_a_line_for_each_fleet_speed_and_policy(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["simulate", trace, "--fleet", "2b,1p1d", "--policy", "dynamo,round_robin", "--speed", "1,2"])
    about, head, *lines = lines_of(capsys)
    assert about.startswith("traffic")
    assert "12 requests" in about
    assert head.split()[:4] == ["fleet", "speed", "policy", "served"]
    assert [line.split()[:4] for line in lines] == [
        [fleet, speed, policy, "12/12"]
        for fleet in ("2b", "1p1d")
        for speed in ("1", "2")
        for policy in ("dynamo", "round_robin")
    ]


def test_all_figures_are_written(
    trace: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "folder"
    main(["simulate", trace, "--policy", "all", "--fleet", "2b", "--seed", "7", "--out", str(out)])
    assert len(lines_of(capsys)) == 2 + len(names_of_policies())
    written = json.loads((out / "figures.json").read_text())
    assert [cell["policy"] for cell in written["cells"]] == names_of_policies()
    assert written["setup"]["seed"] == 7
    figures = written["cells"][0]["figures"]
    assert figures["served"] == 12
    assert figures["ttft_ms"]["p99"] >= figures["ttft_ms"]["p50"] > 0
    assert set(figures["instances"]) == {"b0:1", "b1:1"}
    page = (out / "report.html").read_text()
    assert all(f">{name}<" in page for name in names_of_policies())


def test_goals_decide_what_is_good(trace: str, tmp_path: pathlib.Path) -> None:
    good = []
    for goals in (["--ttft-ms", "2000", "--tpot-ms", "50"], ["--ttft-ms", "0"], ["--tpot-ms", "0"]):
        main(["simulate", trace, "--fleet", "2b", "--out", str(tmp_path), *goals])
        good.append(json.loads((tmp_path / "figures.json").read_text())["cells"][0]["figures"]["good"])
    assert good == [1.0, 0.0, 0.0]


def test_a_generator_makes_traffic_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate", "unrelated:per_s=2,duration_s=20", "--fleet", "2b", "--spread"])
    about, _, line = lines_of(capsys)
    count = about.split()[1]
    assert int(count) > 10
    assert line.split()[3] == f"{count}/{count}"


def test_less_is_read_if_so_asked(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate", trace, "--limit", "5", "--unknown-share", "1", "--event-delay-ms", "100"])
    assert lines_of(capsys)[-1].split()[3] == "5/5"


def test_a_fleet_may_be_slow_in_part_and_fail_in_part(
    trace: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    for words in ([], ["--instance-speed", "b0=0.25", "b1=0.25"], ["--outage", "b0=2+1", "b1=2+2"]):
        main(["simulate", trace, "--fleet", "2b", "--routers", "2", "--out", str(tmp_path), *words])
        figures.append(json.loads((tmp_path / "figures.json").read_text())["cells"][0]["figures"])
    plain, slow, failing = figures
    assert [each["served"] for each in figures] == [12, 12, 12]
    assert slow["ttft_ms"]["mean"] > 3 * plain["ttft_ms"]["mean"]
    assert failing["waited_ms"]["mean"] > plain["waited_ms"]["mean"] == 0.0


def test_engines_may_be_as_a_file_says(trace: str, tmp_path: pathlib.Path) -> None:
    profile = ProfileFile(
        source="a test", a=500.0, b=0.001, c=0.0, transfer=0.0, transfer_per_token=0.0, handshake=0.0,
        s0=100.0, s1=0.0, s2=0.0, engine=EngineSize(block_size=16, blocks=64),
    )  # fmt: skip
    path = tmp_path / "slow.toml"
    path.write_text(written(profile))
    main(["simulate", trace, "--fleet", "12b", "--profile", str(path), "--out", str(tmp_path)])
    figures = json.loads((tmp_path / "figures.json").read_text())["cells"][0]["figures"]
    assert figures["itl_ms"]["p50"] == pytest.approx(100.0)
    assert figures["ttft_ms"]["p50"] == pytest.approx(500.2, abs=0.1)
    blocks = msgspec.structs.replace(profile, engine=EngineSize(block_size=16, blocks=44))
    path.write_text(written(blocks))  # 704 tokens: none fits with its answer
    main(["simulate", trace, "--fleet", "12b", "--profile", str(path), "--out", str(tmp_path)])
    figures = json.loads((tmp_path / "figures.json").read_text())["cells"][0]["figures"]
    assert figures["refused"] == 12


def test_all_may_be_one_of_several_policies(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate", trace, "--policy", "dynamo,all"])
    policies = [line.split()[2] for line in lines_of(capsys)[2:]]
    assert policies == ["dynamo", *(name for name in names_of_policies() if name != "dynamo")]


def test_words_longer_than_a_file_name_can_be_are_a_generator_or_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "unrelated:" + ",".join(["per_s=2", "duration_s=5"] * 20)
    main(["simulate", words, "--fleet", "2b", "--policy", "random"])
    assert "unrelated" in capsys.readouterr().out
    for missing in ("a" * 300, "chats" + "a" * 300):
        with pytest.raises(SystemExit) as exit_:
            main(["simulate", missing, "--fleet", "2b"])
        assert exit_.value.code == 2
        assert "File name too long" in capsys.readouterr().err


def test_the_seed_draws_a_generators_traffic_too(tmp_path: pathlib.Path) -> None:
    told = []
    for seed, more in (("1", ""), ("2", ""), ("2", ",seed=1")):
        words = [f"unrelated:per_s=1,duration_s=20{more}", "--seed", seed, "--policy", "round_robin"]
        main(["simulate", *words, "--out", str(tmp_path)])
        told.append(json.loads((tmp_path / "figures.json").read_text())["source"])
    first, second, third = told
    assert "seed=1" in first == third != second


def test_what_no_request_has_is_no_figure(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["unrelated:input_tokens=2e6,most_tokens=9000000,input_spread=0,per_s=1,duration_s=5"]
    main(["simulate", *words, "--fleet", "2b", "--out", str(tmp_path)])
    line = lines_of(capsys)[2]
    assert line.split()[4:-1] == ["0.000", *8 * "-", "0%", "0%", "-", "0"]
    figures = json.loads((tmp_path / "figures.json").read_text())["cells"][0]["figures"]
    assert figures["ttft_ms"]["mean"] is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_and_wiped_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    main(["simulate", "unrelated:per_s=100,duration_s=5", "--fleet", "2b", "--policy", "random"])
    shown = terminal.getvalue()
    assert "2b random at 1: 256 of " in shown
    assert shown.endswith("\r\033[K")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fleet", "4x"], "--fleet '4x': write counts"),
        (["--fleet", "4b,"], "--fleet '4b,': a word is missing"),
        (["--policy", "best"], "--policy 'best' is not known: give least_ms, "),
        (["--policy", "best"], ", dynamo, llmd, package.module:Class, or all"),
        (["--profile", "fast"], "--profile 'fast' is not known"),
        (["--speed", "0"], "--speed 0: a number from 0.001"),
        (["--speed", "1e-300"], "--speed 1e-300: a number from 0.001"),
        (["--speed", "quick"], "--speed 'quick': a number is needed"),
        (["--unknown-share", "2"], "--unknown-share"),
        (["--bypass", "some"], "argument --bypass: 'some' is not auto, off or a whole number"),
        (["--bypass", "-1"], "--bypass must be at least 0, not -1"),
        (["--limit", "0"], "argument --limit: 0: not from 1 to 1000000000"),
        (["--limit", "few"], "argument --limit: 'few': a whole number is needed"),
        (["--routers", "2.5"], "argument --routers: '2.5': a whole number is needed"),
        (["--ttft-ms", "soon"], "argument --ttft-ms: 'soon': a number is needed"),
        (["--unknown-share", "half"], "argument --unknown-share: 'half': a number is needed"),
        (["--seed", "x"], "argument --seed: 'x': a whole number is needed"),
        (["--seed", "-1"], "argument --seed: -1: not from 0 to 18446744073709551615"),
        (["--routers", "0"], "--routers"),
        (["--routers", "1000000000"], "--routers 1000000000: a number from 1 to 1024"),
        (["--outage", "b0=10+20", "b0=20+60"], "--outage: b0 dies again before it is back"),
        (["--instance-speed", "b0"], "--instance-speed 'b0': NAME=VALUE"),
        (["--instance-speed", "b0=0"], "--instance-speed: numbers above 0"),
        (["--outage", "b0=7"], "--outage 'b0=7': NAME=VALUE"),
        (["--outage", "p9=7+1"], "p9: not in the fleet 8b"),
        (["--out", "/dev/null/figures"], "--out /dev/null/figures"),
        (["--flet", "4b"], "--flet"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    words: list[str], said: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", trace, *words])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    ("traces", "said"),
    [
        (["/nowhere.jsonl"], "/nowhere.jsonl"),
        (["chats:colour=red"], "chats: 'colour=red' is no figure"),
        (["chats", "--limit", "5"], "--limit is for files"),
        ([], "TRACE"),
    ],
)
def test_a_trace_that_is_none_is_refused(
    traces: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *traces])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ("per_s=1e12", "unrelated: per_s is 1e+12, and must be 1e+09 or less"),
        ("burst=1e200", "unrelated: burst is 1e+200, and must be 1000 or less"),
    ],
)
def test_a_generator_that_would_never_end_is_refused(
    figures: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", f"unrelated:{figures}"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["simulate", "--help"]])
def test_help_tells_of_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert "simulated time" in " ".join(capsys.readouterr().out.split())


class Fails:
    """A policy with a mistake in it."""

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        raise ZeroDivisionError("a mistake")


def test_a_policy_that_fails_ends_the_run_and_says_how(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", trace, "--policy", f"{__name__}:Fails"])
    assert ended.value.code == 2
    assert "the policy has failed: ZeroDivisionError: a mistake" in capsys.readouterr().err


class Interrupted:
    """A policy during which the user presses Ctrl-C."""

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        signal.raise_signal(signal.SIGINT)
        return [0.0] * len(candidates)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("cut", "code"), [("Interrupted", 130), ("Fails", 2)])
def test_runs_that_are_finished_are_told_whatever_ends_the_command(
    cut: str, code: int, trace: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "simulate", trace, "--policy", f"round_robin,{__name__}:{cut},random", "--fleet", "2b",
                "--out", str(tmp_path / "out"),
            ]
        )  # fmt: skip
    assert ended.value.code == code
    _, head, line, last = lines_of(capsys)
    assert head.startswith("fleet")
    assert line.split()[2:4] == ["round_robin", "12/12"]
    assert last == "2 of 3 runs were not finished"
    written = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert (written["runs"], [cell["policy"] for cell in written["cells"]]) == (3, ["round_robin"])
    assert "2 of 3 runs" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("interruptible")
def test_an_end_before_any_run_is_finished_writes_nothing(
    trace: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", trace, "--policy", f"{__name__}:Interrupted", "--out", str(tmp_path / "out")])
    assert ended.value.code == 130
    assert len(lines_of(capsys)) == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", "{trace}", "--out", "{out}"],
        ["doctor", "-m", "m", "-p", "127.0.0.1:1", "-d", "127.0.0.1:2"],
    ],
)
def test_a_reader_that_leaves_ends_a_command_without_a_word(
    words: list[str], trace: str, tmp_path: pathlib.Path
) -> None:
    given = [word.format(trace=trace, out=tmp_path / "out") for word in words]
    reads, writes = os.pipe()
    os.close(reads)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", "from proxy.cli.main import main; main()", *given],
            stdout=writes,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
        )
    finally:
        os.close(writes)
    assert (ended.returncode, ended.stderr) == (141, b"")
