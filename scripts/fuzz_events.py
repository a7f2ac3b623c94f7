#!/usr/bin/env python3
"""Tell the KV-event side of kvproxy nonsense, and see that good engines are followed exactly afterwards.

    scripts/fuzz_events.py [--inputs N] [--wire N] [--seed N]
    scripts/fuzz_events.py --seed N --only STORY
    scripts/fuzz_events.py --seed N --only-wire STORY

Inputs are made from what real engines published: bytes, values, lengths, numbers and frames are changed, cut off, doubled
and put in another order, and there are payloads made to be as bad as the wire allows. Most go straight into decoder,
source and index; the others come from a ZeroMQ publisher that also lies when it is asked for a replay. They come in
stories, and after each a good engine at the same address must be followed exactly, beside another that nothing may touch.
It fails if anything raises, a subscriber gets stuck, the index contradicts itself, a block is neither applied nor
counted, others have no turn for long, or memory grows. A seed tells the same stories again, `--only` a single one (what a
wire story meets also depends on time). Exit code 1: it failed. Needs the project's environment: run it with the Python
in .venv.
"""

import argparse
import gc
import pathlib
import sys
import time
from collections.abc import Callable

from rich.console import Console

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tests.fuzz.events.in_process import InProcess
from tests.fuzz.events.on_wire import OnWire
from tests.fuzz.events.report import show
from tests.fuzz.events.tally import Tally


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all")
    parser.add_argument("--wire", type=int, default=100_000, help="of them on real sockets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--time-limit-s", type=float, default=float("inf"), help="of each part; end early")
    parser.add_argument("--only", type=int, metavar="STORY", help="tell this one, in process")
    parser.add_argument("--only-wire", type=int, metavar="STORY", help="tell this one, on real sockets")
    args = parser.parse_args()
    gc.freeze()  # as kvproxy does
    parts: dict[str, Tally] = {}
    if args.only is None:
        parts["on the wire"] = Tally()
        wire_inputs = 1 if args.only_wire is not None else min(args.wire, args.inputs)
        _wire(args.seed, wire_inputs, args.only_wire or 0, args.time_limit_s, parts["on the wire"])
    if args.only_wire is None:
        parts["in process"] = Tally()
        _in_process(args.seed, args.inputs - args.wire, args.only, args.time_limit_s, parts["in process"])
    return 0 if show(parts, Console(width=None if sys.stdout.isatty() else 200)) else 1


def _in_process(seed: int, inputs: int, only: int | None, limit_s: float, tally: Tally) -> None:
    part = InProcess(seed, tally)
    if only is not None:
        part.tell(only)
    elif inputs > 0:
        part.run(inputs, _time_is_up(limit_s), lambda: _say("in process", tally))
        tally.judge_memory()


def _wire(seed: int, inputs: int, first: int, limit_s: float, tally: Tally) -> None:
    if inputs > 0:
        OnWire(seed, tally).run(inputs, first, _time_is_up(limit_s), lambda: _say("on the wire", tally))
        tally.judge_memory()


def _time_is_up(limit_s: float) -> Callable[[], bool]:
    ends = time.monotonic() + limit_s
    return lambda: time.monotonic() > ends


def _say(part: str, tally: Tally) -> None:
    if len(tally.memory) % 10:
        return
    mib = tally.memory[-1][1]
    print(
        f"  {part}: {tally.inputs} inputs, {mib:.1f} MiB, {tally.found} findings", file=sys.stderr, flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
