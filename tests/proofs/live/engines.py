"""Stand-ins of one scale, all in one process: `python -m tests.proofs.live.engines` until SIGTERM.

They sleep nearly all of the time, so that one event loop serves them with less work for the machine than a
process for each would be.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence

import uvloop

from proxy.simulation.engine.values import EngineShape
from proxy.simulation.live.config import StandInConfig
from proxy.simulation.live.stand_in import StandIn
from scripts.workshop.checkout import ROOT
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import OwnedProcess
from tests.proofs.live.scaling import Scale, scaled_shape

HOST = "127.0.0.1"
MODEL = "tiny"
_UP_S = 60.0
_POLL_S = 0.1


def config_of(shape: EngineShape, port: int) -> StandInConfig:
    """The stand-in of that shape."""
    return StandInConfig(
        port=port,
        model=shape.model,
        block_size=shape.block_size,
        blocks=shape.blocks,
        max_model_len=shape.max_model_len,
        max_batched_tokens=shape.max_batched_tokens,
        max_sequences=shape.max_sequences,
        lease_s=shape.lease_s,
        profile=shape.profile,
    )


@contextlib.contextmanager
def engines(
    count: int, profile: str, scale: Scale, block_tokens: int, log: pathlib.Path
) -> Iterator[tuple[OwnedProcess, list[str]]]:
    """The process of so many stand-ins, which answer, and their addresses; it has ended afterwards.

    Raises RuntimeError if they do not come up. Call it from the main thread.
    """
    ports = free_ports(count)
    words = [profile, *map(str, dataclasses.astuple(scale)), str(block_tokens), *map(str, ports)]
    command = [sys.executable, "-m", "tests.proofs.live.engines", *words]
    process = OwnedProcess("engines", command, log, os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        addresses = [f"{HOST}:{port}" for port in ports]
        end = time.monotonic() + _UP_S
        while not all(map(_answers, addresses)):
            if process.exit_code is not None or time.monotonic() > end:
                raise RuntimeError(f"the engines did not come up; their log is {log}:\n{process.tail()}")
            time.sleep(_POLL_S)
        yield process, addresses
    finally:
        process.stop()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


async def _serve(shape: EngineShape, ports: Sequence[int]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        for port in ports:
            await stack.enter_async_context(StandIn(config_of(shape, port)))
        await stop.wait()


def main() -> None:
    """Serve as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("profile")
    parser.add_argument("tokens", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("time", type=float)
    parser.add_argument("block_tokens", type=int)
    parser.add_argument("ports", type=int, nargs="+")
    args = parser.parse_args()
    scale = Scale(args.tokens, args.steps, args.time)
    shape = scaled_shape(args.profile, scale, block_tokens=args.block_tokens, model=MODEL)
    uvloop.run(_serve(shape, args.ports))


if __name__ == "__main__":
    main()
