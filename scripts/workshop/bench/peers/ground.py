"""Loads and pauses are measured on the same ground: our engines, what they have cached, bodies to send."""

import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from proxy.tokenizing import LocalTokenizer, read_model
from scripts.workshop.bench.peers import backend, bodies, tools
from scripts.workshop.bench.peers.backend import Backend
from scripts.workshop.bench.peers.cases import Case
from scripts.workshop.bench.peers.publisher import runs
from scripts.workshop.bench.peers.routers import Engines, Mode
from scripts.workshop.bench.tokens import trained
from scripts.workshop.checkout import ROOT
from scripts.workshop.live.processes import OwnedProcess


class Bursts(NamedTuple):
    """Events that engines publish meanwhile."""

    tokens: int = 0
    """In each; 0 for no events."""
    every_s: float = 1.0


class Ground(NamedTuple):
    """All that routers are measured with."""

    folder: pathlib.Path
    """For logs; the bodies of each case are in it."""
    load: pathlib.Path
    """The load generator."""
    backend: Backend
    model: pathlib.Path
    """A directory with the tokenizer and the chat template; empty if no case needs one."""
    blocks: int
    """What all engines have cached, together."""


@contextmanager
def prepared(folder: pathlib.Path, cases: Sequence[Case], bursts: Bursts | None = None) -> Iterator[Ground]:
    """Engines for these cases, ended afterwards. Raises NoCompilerError."""
    built = tools.build(folder)
    model = folder / "model"
    model.mkdir()
    tokenizer = None
    if any(case.mode is Mode.TOKENIZED for case in cases):
        tokenizer = LocalTokenizer(read_model(trained(model)))
    prompts: list[Sequence[int]] = []
    for case in cases:
        made = case.bodies(tokenizer)
        bodies.write(made, bodies_file(folder, case))
        prompts += [body.prefix for body in made if body.prefix]
    with ExitStack() as stack:
        engines = stack.enter_context(backend.started(built.engine, folder, tokenizer))
        if tokenizer is not None:
            tokenizer.close()
        if prompts:
            stack.callback(_publisher(folder, engines.engines, prompts, bursts or Bursts()).stop)
        each = sum(len(run.hashes) for run in runs(prompts))
        yield Ground(folder, built.load, engines, model, each * len(engines.engines.publishers))


def bodies_file(folder: pathlib.Path, case: Case) -> pathlib.Path:
    """Where the bodies of a case are."""
    return folder / f"{case.key}.bodies"


def _publisher(
    folder: pathlib.Path, engines: Engines, prompts: Sequence[Sequence[int]], bursts: Bursts
) -> OwnedProcess:
    file = folder / "prompts.json"
    file.write_text(json.dumps(prompts), "utf-8")
    command = [sys.executable, "-m", "scripts.workshop.bench.peers.publisher", str(file)]
    command += [f"{events}:{replay}" for events, replay in engines.publishers.values()]
    command += ["--burst-tokens", str(bursts.tokens), "--every-s", str(bursts.every_s)]
    env = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    return OwnedProcess("publisher", command, folder / "publisher.log", env)
