"""`kvproxy plan` says how GPUs are split best, and what is wrong with its words."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from proxy.cli.main import main

TRAFFIC = "unrelated:per_s=4,duration_s=15"


def test_a_table_and_what_to_do_are_printed_and_written(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "folder"
    main(["plan", TRAFFIC, "--gpus", "3", "--ttft-ms", "1500", "--policy", "least_load", "--out", str(out)])
    printed = capsys.readouterr()
    about, head, *lines = printed.out.splitlines()
    assert about.startswith("unrelated")
    assert head.split()[0] == "split"
    assert [line.split()[0] for line in lines[:3]] == ["1p2d", "2p1d", "3b"]
    assert printed.err.startswith("this will take about ")
    plan = json.loads((out / "plan.json").read_text())
    assert f"Take {plan['take']}: 3 GPUs carry " in lines[3]
    assert plan["finished"] is True
    assert plan["task"]["setup"]["policy"] == "least_load"
    assert plan["task"]["setup"]["goals"] == {"ttft_ms": 1500.0, "tpot_ms": 30.0}
    assert {trial["fleet"] for trial in plan["trials"]} == {"1p2d", "2p1d", "3b"}
    assert (out / "plan.html").read_text().count("<svg") >= 3


def test_only_what_is_asked_is_tried(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpus", "6", "--gpus-per-instance", "2", "--fleet", "1p2d,3b", "--minutes", "0.2", "--goodput"]
    main(["plan", TRAFFIC, *words, "0.5", "--bypass", "off", "--out", str(tmp_path)])
    about, _, *lines = capsys.readouterr().out.splitlines()
    assert "from 0 to 12 s" in about
    assert [line.split()[0] for line in lines[:2]] == ["1p2d", "3b"]
    assert "Take " in lines[2]
    assert "6 GPUs carry" in lines[2]
    task = json.loads((tmp_path / "plan.json").read_text())["task"]
    assert task["share"] == 0.5
    assert task["setup"]["bypass_tokens"] == 0
    assert "<dt>bypass</dt><dd>off</dd>" in re.sub(r"\s*\n\s*", "", (tmp_path / "plan.html").read_text())


def test_ctrl_c_leaves_what_is_known(tmp_path: pathlib.Path) -> None:
    words = ["plan", "unrelated:per_s=20,duration_s=200", "--gpus", "24", "--policy", "least_load"]
    words += ["--out", str(tmp_path)]
    command = [sys.executable, "-c", "from proxy.cli.main import main; main()", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("this will take about ")  # the first run is over
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The search was ended before its time" in out
    assert "Traceback" not in err
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["finished"] is False
    assert plan["trials"]
    assert (tmp_path / "plan.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: --gpus"),
        (["--gpus", "0"], "argument --gpus: 0: not from 1"),
        (["--gpus", "3", "--gpus-per-instance", "2"], "--gpus 3: no multiple of --gpus-per-instance 2"),
        (["--gpus", "2", "--fleet", "2x"], "--fleet '2x': write counts"),
        (
            ["--gpus", "2", "--fleet", "2b", "--both", "none"],
            "--both says which splits are tried, and --fleet",
        ),
        (["--gpus", "3", "--fleet", "2b"], "--fleet '2b': 2 instances, but --gpus makes 3"),
        (["--gpus", "1", "--both", "none"], "--gpus 1: one instance cannot be split"),
        (["--gpus", "2", "--both", "many"], "argument --both: invalid Both value: 'many'"),
        (["--gpus", "2", "--policy", "best"], "--policy 'best' is not known"),
        (["--gpus", "2", "--profile", "fast"], "--profile 'fast' is not known: give one of "),
        (["--gpus", "2", "--goodput", "95"], "argument --goodput: 95: not from 0.01 to 1"),
        (["--gpus", "2", "--minutes", "0"], "argument --minutes: 0: not from"),
        (["--gpus", "2", "--sample", "-1"], "argument --sample: -1: not from 0"),
        (["--gpus", "2", "--sample", "abc"], "argument --sample: 'abc': a whole number is needed"),
        (["--gpus", "2", "--bypass", "-1"], "--bypass must be at least 0, not -1"),
        (["--gpus", "2", "--bypass", "few"], "argument --bypass: 'few' is not auto, off or a whole number"),
        (["--gpus", "2", "--out", "/dev/null/plan"], "--out /dev/null/plan: Not a directory"),
    ],
)
def test_wrong_words_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", TRAFFIC, *words])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_a_trace_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "nowhere.jsonl", "--gpus", "2"])
    assert exit_.value.code == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
