"""Clients that know nothing of kvproxy make of its answers what they make of an engine's.

Each is a program of its own in `clients/`: their imports are slow, and warn.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from scripts.workshop.checkout import ROOT
from scripts.workshop.engines.engine import Installation
from tests import fleets
from tests.fidelity.conftest import Sides

WAIT_S = 110


def run(words: list[str]) -> str:
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it asks the network for prices
    done = subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def made_of(urls: list[str], name: str, *flags: str) -> list[Any]:
    """What a client makes of the answers at each of the URLs."""
    words = [sys.executable, "-m", f"tests.fidelity.clients.{name}_client", *urls, *flags]
    return [json.loads(line) for line in run(words).splitlines() if line.startswith("{")]


@pytest.mark.timeout(2 * WAIT_S + 60)
@pytest.mark.parametrize("name", ["openai", "litellm", "langchain"])
def test_a_client_is_told_the_same(sides: Sides, name: str) -> None:
    flags = ["--free"] if sides.real else []
    got, expected = made_of([sides.proxy.url, sides.plain], name, *flags)
    assert got == expected
    assert all(got[what] for what in got if what != "forced" or not sides.real), got


@pytest.mark.timeout(fleets.START_S)
@pytest.mark.parametrize("sides", [pytest.param("real", marks=pytest.mark.real)], indirect=True)
@pytest.mark.parametrize(
    ("backend", "path"), [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")]
)
def test_vllm_bench_serves_its_load(sides: Sides, backend: str, path: str, tmp_path: pathlib.Path) -> None:
    install = Installation.default()
    words = [str(install.vllm), "bench", "serve", "--backend", backend, "--base-url", sides.proxy.url]
    words += ["--endpoint", path, "--model", "tiny", "--tokenizer", str(install.model), "--ignore-eos"]
    words += ["--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "8"]
    words += ["--num-prompts", "8", "--max-concurrency", "4", "--disable-tqdm"]
    words += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "bench.json"]
    run(words)
    told = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert (told["completed"], told["failed"], told["total_output_tokens"]) == (8, 0, 64)
