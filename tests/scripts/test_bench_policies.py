"""The grid of policies: what is run, that it is run once, and that a verdict can be either."""

import pathlib
import sys
from xml.etree import ElementTree as ET

import msgspec
import pytest

from proxy.traces.readers import read
from proxy.traces.shaping import between
from scripts import bench_policies
from scripts.workshop.bench.policies.ablation import OURS, WITHOUT
from scripts.workshop.bench.policies.cells import Asked, Got, run_cell
from scripts.workshop.bench.policies.grid import BASELINES, SECTIONS, Size
from scripts.workshop.bench.policies.plot import write_plot
from scripts.workshop.bench.policies.reference import MS
from scripts.workshop.bench.policies.run import run
from scripts.workshop.bench.policies.store import FILE, Store
from scripts.workshop.bench.policies.traffics import AGENTS, GENERATED, RECORDED, fits, traffic
from scripts.workshop.bench.policies.verdicts import by_place, conversation, truth, unbeaten

TRACE = (
    pathlib.Path(__file__).parent.parent
    / "proxy"
    / "simulation"
    / "replay"
    / "data"
    / "conversation_slice.jsonl.gz"
)


def got(policy: str, ttft_ms: float, seed: int = 0, place: Asked | None = None, **figures: float) -> Got:
    asked = place or Asked("chats", "8b", "")
    usual: dict[str, object] = {
        "requests": 10,
        "served": 10,
        "reuse": 0.1,
        "ttft_ms": ttft_ms,
        "ttft_p50_ms": ttft_ms,
        "ttft_p90_ms": ttft_ms,
        "ttft_p99_ms": ttft_ms,
        "itl_p99_ms": 1.0,
        "whole_ms": 1000.0,
        "good": 0.9,
        "balance": 1.0,
        "preemptions": 0,
        "decision_us": 1.0,
        "cpu_s": 1.0,
        "instances": {},
    }
    return msgspec.convert(
        {"asked": msgspec.to_builtins(msgspec.structs.replace(asked, policy=policy, seed=seed))}
        | usual
        | figures,
        Got,
    )


def test_what_has_ended_is_not_run_again(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = Size(("round_robin",), 1, short=True)
    assert not run(["conversation"], size, Store(tmp_path), TRACE, jobs=1), "there is nothing to be judged"
    first = capsys.readouterr().out
    assert first.startswith("8 runs, 8 of them to do")
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"asked":')  # killed within a line
    run(["conversation"], size, Store(tmp_path), TRACE, jobs=1)
    second = capsys.readouterr().out
    assert second.startswith("8 runs, 0 of them to do")
    assert second.partition("\n\n")[2] == first.partition("\n\n")[2]
    again = Store(tmp_path, frozenset({"round_robin"}))
    assert not list(again)


def test_without_the_trace_generated_workloads_are_run_alone() -> None:
    size = Size((OURS, *BASELINES), 2, short=False)
    cells = {asked for section in SECTIONS.values() for asked in section(size)}
    assert {asked.traffic.partition(".")[0] for asked in cells} == {
        RECORDED,
        *GENERATED,
        *(name.partition(".")[0] for name in AGENTS),
    }
    with pytest.raises(ValueError, match="conversation: a trace is needed"):
        traffic(RECORDED, 0, None)


@pytest.mark.parametrize("name", [*GENERATED, *AGENTS])
def test_every_request_of_a_generated_workload_has_room_in_an_engine(name: str) -> None:
    made = traffic(name, 0, None)
    assert fits(made)
    assert traffic(name, 1, None).requests != made.requests


def test_a_policy_is_beaten_by_what_is_more_than_noise() -> None:
    cells = [got(OURS, 100.0 + seed, seed) for seed in range(3)]
    cells += [got("dynamo", 99.0 + seed, seed) for seed in range(3)]
    assert all(verdict.holds for verdict in unbeaten(by_place(cells)))
    cells += [got("llmd", 90.0 + seed, seed) for seed in range(3)]
    ttft, good = unbeaten(by_place(cells))
    assert not ttft.holds
    assert "llmd, ahead by +11" in ttft.words
    assert good.holds
    cells += [got("session", 200.0, seed, good=0.95) for seed in range(3)]
    assert [verdict.holds for verdict in unbeaten(by_place(cells))] == [False, False]


def test_differences_that_change_their_sign_are_noise() -> None:
    cells = [got(OURS, ttft_ms, seed) for seed, ttft_ms in enumerate((100.0, 130.0, 90.0))]
    cells += [got("dynamo", ttft_ms, seed) for seed, ttft_ms in enumerate((110.0, 95.0, 100.0))]
    assert all(verdict.holds for verdict in unbeaten(by_place(cells)))


def test_the_recorded_trace_has_bounds_of_its_own() -> None:
    place = Asked(RECORDED, "8b", "", 6.0)
    others = [got("dynamo", 556.0, place=place, ttft_p99_ms=2320.0, whole_ms=21522.0)]
    fine = got(OURS, MS["8b", 6.0], place=place, ttft_p99_ms=2000.0, whole_ms=12000.0, good=0.76)
    verdicts = list(conversation(by_place([*others, fine])))
    assert len(verdicts) == 5
    assert all(verdict.holds for verdict in verdicts)
    poor = got(OURS, 1.1 * 556.0, place=place, ttft_p99_ms=2500.0, whole_ms=22000.0, good=0.7)
    assert not any(verdict.holds for verdict in conversation(by_place([*others, poor])))


def test_the_simulator_is_held_to_the_figures_of_others() -> None:
    place = Asked(RECORDED, "8b", "", 1.0)
    alike = got("round_robin", 330.0, place=place, reuse=0.083)
    assert [verdict.holds for verdict in truth(by_place([alike]))] == [True] * 4
    other = got("round_robin", 380.0, place=place, reuse=0.1)
    assert not any(verdict.holds for verdict in truth(by_place([other])))


@pytest.mark.parametrize("name", WITHOUT)
def test_every_part_can_be_left_out(name: str) -> None:
    place = Asked("few", "2p2d", "", 8.0)
    few = between(read(TRACE), 0.0, 30.0)
    whole, less = (run_cell(msgspec.structs.replace(place, policy=policy), few) for policy in (OURS, name))
    assert whole.served == less.served == len(few.requests)


def test_the_plot_has_a_curve_for_each_policy(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="nothing was run"):
        write_plot([got("dynamo", 300.0)], tmp_path / "plot.svg")
    cells = [
        got(policy, 300.0 * speed, place=Asked(RECORDED, fleet, "", speed))
        for policy in (OURS, "dynamo")
        for fleet, speed in (("8b", 1.0), ("8b", 3.0), ("4p4d", 1.0), ("4p4d", 5.0))
    ]
    write_plot(cells, tmp_path / "plot.svg")
    made = ET.parse(tmp_path / "plot.svg")
    curves = [each.get("points") for each in made.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points.split()) for points in curves if points] == [2, 2, 2, 2]


def test_the_plot_of_a_quick_run_is_of_the_beginning_of_the_trace_as_it_is(tmp_path: pathlib.Path) -> None:
    plain = Asked(f"{RECORDED}.short", "8b", "", 3.0)
    late = msgspec.structs.replace(plain, event_delay_s=1.0)
    cells = [got(OURS, 300.0, place=plain), got(OURS, 9000.0, place=late), got(OURS, 400.0, place=late)]
    write_plot(cells, tmp_path / "plot.svg", short=True)
    curves = ET.parse(tmp_path / "plot.svg").iter("{http://www.w3.org/2000/svg}polyline")
    assert [len((each.get("points") or "").split()) for each in curves] == [1]
    with pytest.raises(ValueError, match="nothing was run"):
        write_plot(cells, tmp_path / "plot.svg")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trace", "/nowhere/trace.jsonl"], "--trace: /nowhere/trace.jsonl: No such file or directory"),
        (["--trace", "a" * 300], "File name too long"),
        (["--plot", "plot.svg"], "--plot is of runs on the recorded trace: --trace is needed"),
        (
            ["--trace", str(TRACE), "--only", "generated", "--policies", "", "--plot", "x.svg"],
            "--plot: nothing",
        ),
    ],
)
def test_wrong_words_of_the_script_are_named(
    words: list[str],
    said: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_policies.py", str(tmp_path), *words])
    monkeypatch.setattr(bench_policies, "run", lambda *_: True)
    with pytest.raises(SystemExit) as ended:
        bench_policies.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "plot.svg").exists()
