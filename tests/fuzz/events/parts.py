"""Both parts of a run, on the wire and in process: each is told its share of the inputs, or a single
story."""

import sys
import time
from collections.abc import Callable

from tests.fuzz.events.in_process import InProcess
from tests.fuzz.events.on_wire import OnWire
from tests.fuzz.events.tally import Tally


def run(
    seed: int, inputs: int, wire: int, only: int | None, only_wire: int | None, limit_s: float
) -> dict[str, Tally]:
    """Tell the stories and return a tally of each part.

    Of `inputs` in all, `wire` go over sockets. `only` and `only_wire` name the one story that is told, in
    process or on real sockets. A part ends after `limit_s` seconds.
    """
    parts: dict[str, Tally] = {}
    if only is None:
        parts["on the wire"] = Tally()
        wire_inputs = 1 if only_wire is not None else min(wire, inputs)
        _wire(seed, wire_inputs, only_wire or 0, limit_s, parts["on the wire"])
    if only_wire is None:
        parts["in process"] = Tally()
        _in_process(seed, inputs - wire, only, limit_s, parts["in process"])
    return parts


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
