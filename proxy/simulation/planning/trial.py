"""A trial is one run of a workload on a split, left as soon as so many requests have missed the goals that
the load is clearly too high.
"""

import math
import time as clocks
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec
import numpy as np

from proxy.simulation.replay.figures import Goals
from proxy.simulation.replay.records import End, Record
from proxy.simulation.replay.run import Progress, Run, Setup
from proxy.simulation.replay.use import Use
from proxy.traces.workload import Workload

LEFT_AT = 3.0
"""A run is left when so many times as many requests have missed the goals as may."""
LEAST_LEFT = 0.1
"""And not before this share of all has."""

FULL = 0.9
"""The share of KV blocks in use from which on requests wait for memory."""
OFTEN = 0.1
"""The share of an instance's time in which they do that makes memory the limit."""


class Limit(StrEnum):
    """Why requests missed the goals."""

    PREFILL = "prefill"
    """First tokens are late: prompts wait for each other."""
    DECODE = "decode"
    """Further tokens are late: steps have too many sequences, or prompts in them."""
    MEMORY = "memory"
    """First tokens are late, or generation is begun anew: KV is full where answers are generated."""
    REFUSED = "refused"
    """Requests were refused, failed, or do not fit."""


class Trial(msgspec.Struct, frozen=True):
    """What came of a run. Times in milliseconds, shares from 0 to 1."""

    fleet: str
    speed: float
    whole: bool
    """Whether all of the workload was served, not a sample."""
    requests: int
    good: float
    """The share of requests that met the goals; if it was left, the most that could have."""
    left: bool
    late_first: int
    """Requests whose first token was late."""
    late_next: int
    """Whose further tokens were, in the mean."""
    unserved: int
    good_per_s: float
    ttft_ms: float
    """What the wanted share of requests did not exceed; infinite counts what was not served."""
    tpot_ms: float
    reuse: float
    prefill_use: float
    """The mean share of time that instances which prefill were in steps that compute prompts."""
    decode_use: float
    """The mean share of time that instances which decode were at work."""
    kv_use: float
    """The highest share of KV blocks in use, of instances that decode."""
    limit: Limit | None
    """What most of the requests missed the goals for; None if none did."""
    wall_s: float
    """This machine's time."""


class _LeftError(Exception):
    """The run is hopeless."""


def attempt(
    workload: Workload,
    setup: Setup,
    share: float,
    *,
    whole: bool,
    leaves: bool = True,
    progress: Progress | None = None,
) -> Trial:
    """Let the split of `setup` serve the workload. Raises ConfigError.

    `share`: of requests that is to meet the goals of `setup`. `leaves`: whether it is left if it is hopeless.
    """
    begun_s = clocks.monotonic()
    goals = setup.goals
    most = max(LEFT_AT * (1 - share), LEAST_LEFT) * len(workload.requests) if leaves else math.inf

    def watched(over: int, of: int, at_s: float) -> None:
        if progress is not None:
            progress(over, of, at_s)
        if over < of and sum(map(any, _missed(run.records, goals, at_s))) > most:
            raise _LeftError

    run = Run(workload, setup, progress=watched)
    left = False
    try:
        run.to_end()
    except _LeftError:
        left = True
    uses = {address: engine.use for address, engine in run.engines.items()}
    return _trial(run.records, uses, setup, share, run.time.now_s, whole=whole, left=left,
                  wall_s=clocks.monotonic() - begun_s)  # fmt: skip


def _missed(records: Sequence[Record], goals: Goals, now_s: float) -> Iterable[tuple[bool, bool, bool]]:
    """Of each record: whether its first token is late, its further ones are, or it was not served."""
    for record in records:
        if record.end is None:
            first_s = record.first_token_s or now_s
            yield 1000 * (first_s - record.asked_s) > goals.ttft_ms, False, False
        elif record.end is not End.SERVED:
            yield False, False, True
        else:
            yield 1000 * record.ttft_s > goals.ttft_ms, 1000 * record.tpot_s > goals.tpot_ms, False


def _trial(
    records: Sequence[Record],
    uses: Mapping[str, Use],
    setup: Setup,
    share: float,
    now_s: float,
    *,
    whole: bool,
    left: bool,
    wall_s: float,
) -> Trial:
    missed = [*_missed(records, setup.goals, now_s)]
    first, following, unserved = (sum(column) for column in zip(*missed, strict=True))
    good = len(records) - sum(map(any, missed))
    begun_s = min((record.asked_s for record in records), default=0.0)
    duration_s = max(now_s - begun_s, 1e-9)
    ended = [record for record in records if record.end is not None]
    served = [record for record in ended if record.end is End.SERVED]
    prompts = sum(record.input_tokens for record in served)
    return Trial(
        fleet=setup.fleet,
        speed=setup.speed,
        whole=whole,
        requests=len(records),
        good=good / len(records),
        left=left,
        late_first=first,
        late_next=following,
        unserved=unserved,
        good_per_s=0.0 if left else good / duration_s,
        ttft_ms=_not_exceeded(ended, lambda record: record.ttft_s, share),
        tpot_ms=_not_exceeded(ended, lambda record: record.tpot_s, share),
        reuse=sum(record.reused_tokens for record in served) / prompts if prompts else 0.0,
        prefill_use=_mean([u.prefill_s / duration_s for a, u in uses.items() if a[0] in "pb"]),
        decode_use=_mean([(u.prefill_s + u.decode_s) / duration_s for a, u in uses.items() if a[0] in "db"]),
        kv_use=max(
            (each.usage for a, u in uses.items() if a[0] in "db" for each in u.bins.values()), default=0.0
        ),
        limit=_limit(first, following, unserved, [u for a, u in uses.items() if a[0] in "db"]),
        wall_s=wall_s,
    )


def _not_exceeded(records: Sequence[Record], of: Callable[[Record], float], share: float) -> float:
    values = np.array(
        [1000 * of(record) if record.end is End.SERVED else math.inf for record in records], np.float64
    )
    if not len(values):
        return 0.0
    return float(np.sort(values)[max(0, math.ceil(share * len(values)) - 1)])


def _limit(first: int, following: int, unserved: int, generating: Sequence[Use]) -> Limit | None:
    if not first + following + unserved:
        return None
    if unserved > max(first, following):
        return Limit.REFUSED
    preempted = sum(use.preemptions for use in generating)
    if preempted > OFTEN * (first + following) or any(map(_often_full, generating)):
        return Limit.MEMORY
    return Limit.DECODE if following > first else Limit.PREFILL


def _often_full(use: Use) -> bool:
    waited = sum(each.usage >= FULL and each.waiting > 0 for each in use.bins.values())
    return waited > OFTEN * len(use.bins)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
