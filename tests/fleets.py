"""The engines that tests share: one plan, real or stand-in, started once in a session."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from proxy.simulation.api.model_files import write_model
from scripts.workshop import checkout
from scripts.workshop.engines.engine import EngineSpec
from scripts.workshop.engines.fleet import Fleet, plan
from scripts.workshop.engines.stand_in import StandInFleet

LOGS = checkout.LOGS / "tests"
LEASE_S = 20
START_S = 420  # five engines on two busy cores
QUEUED_REQUESTS = 64
QUEUED_TOKENS = 40_000
MODEL = "tiny"
ADAPTER = "alpha"


def specs() -> list[EngineSpec]:
    """One plain engine, two prefill, two decode. The plain one says what is right.

    The decode engines can be full. Nothing but requests for many sequences or tokens at once makes them so.
    """
    engines = plan(
        plain=1,
        prefill=2,
        decode=2,
        lease_s=LEASE_S,
        loras=(ADAPTER,),
        env=(("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1"), ("VLLM_ENABLE_RESPONSES_API_STORE", "1")),
        flags=("--enable-request-id-headers", "--enable-server-load-tracking"),
    )
    limits = (f"--max-num-queued-reqs={QUEUED_REQUESTS}", f"--max-num-queued-tokens={QUEUED_TOKENS}")
    return [
        dataclasses.replace(spec, flags=spec.flags + limits) if spec.role == "decode" else spec
        for spec in engines
    ]


@contextlib.contextmanager
def real_engines(logs: pathlib.Path, say: Callable[[str], None]) -> Iterator[Fleet]:
    """Real engines that answer: a minute or more."""
    with Fleet(specs(), logs, say=say) as engines:
        say(f"\nstarting {len(engines.specs)} real engines, logs in {logs}")
        engines.start()
        engines.wait_healthy(timeout_s=START_S - 60)
        yield engines


@contextlib.contextmanager
def stand_in_engines(logs: pathlib.Path) -> Iterator[StandInFleet]:
    """Stand-ins for the same engines, as slow as those: they are there in a moment."""
    model = logs / "model"  # as real engines tell where their model is
    model.mkdir(parents=True, exist_ok=True)
    write_model(model)
    words = ("--profile", "tiny-cpu", "--root", str(model))
    with StandInFleet(specs(), logs, words=words, say=lambda _: None) as engines:
        engines.start()
        engines.wait_healthy(timeout_s=60)
        yield engines


@contextlib.contextmanager
def with_tools(logs: pathlib.Path, *, real: bool) -> Iterator[Fleet]:
    """One plain engine, one prefill, one decode, which call tools."""
    tools = ("--enable-auto-tool-choice", "--tool-call-parser=hermes", "--enable-request-id-headers")
    engines = plan(plain=1, prefill=1, decode=1, lease_s=LEASE_S, loras=(ADAPTER,), flags=tools)
    made = Fleet(engines, logs, say=lambda _: None) if real else StandInFleet(engines, logs)
    with made as fleet:
        fleet.start()
        fleet.wait_healthy(timeout_s=START_S - 60)
        yield fleet
