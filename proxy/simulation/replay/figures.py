"""What a run adds up to. Every request counts: one that was not served misses every goal.

Times are milliseconds, shares 0 to 1. Quantiles are of all values, the nearest rank above. A figure of
requests, or of instances, of which there were none is `NONE`, in JSON null.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from proxy.simulation.replay.records import End, Record
from proxy.simulation.replay.use import BIN_S, Bin, Use

CLASSES = (0, 1024, 4096, 16384, 65536)
"""Where the classes of prompt length begin, in tokens."""

MOST_MOMENTS = 120
"""So many parts of a run are told apart at most."""

NONE = math.nan
"""No figure."""

Values = npt.NDArray[np.float64]


class Goals(msgspec.Struct, frozen=True):
    """What users want of each request."""

    ttft_ms: float = 2000.0
    tpot_ms: float = 50.0


class Spread(msgspec.Struct, frozen=True):
    """How values lie."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Values, weights: npt.NDArray[np.int64] | None = None) -> "Spread":
        """Of values that count once each, or as often as `weights` says; `NONE` if there are none."""
        if not len(values):
            return cls(NONE, NONE, NONE, NONE)
        order = np.argsort(values, kind="stable")
        ranked = values[order]
        counts = np.ones(len(values), np.int64) if weights is None else weights[order]
        upto = np.cumsum(counts)
        total = int(upto[-1])
        at = np.searchsorted(upto, [max(1, np.ceil(total * q)) for q in (0.5, 0.9, 0.99)])
        mean = float((ranked * counts).sum() / total)
        p50, p90, p99 = (float(ranked[place]) for place in at)
        return cls(mean, p50, p90, p99)


class Moment(msgspec.Struct, frozen=True):
    """What an instance did in a part of the run."""

    at_s: float
    """When the part begins, in seconds of the run."""
    prefill_use: float
    decode_use: float
    running: int
    """Most requests in its batch."""
    waiting: int
    """Most requests in its queue."""
    usage: float
    """Most of its KV blocks in use, as a share."""


class OfInstance(msgspec.Struct, frozen=True):
    """What one instance did."""

    requests: int
    """That generated there, or computed their prompt there."""
    prefill_use: float
    """The share of time in steps that compute prompts."""
    decode_use: float
    """The share of time in steps that only generate."""
    steps: int
    prefilled_tokens: int
    generated_tokens: int
    preemptions: int
    over_time: Sequence[Moment]
    """In parts of equal length, from the beginning of the run to its end."""


class Figures(msgspec.Struct, frozen=True):
    """The figures of one run."""

    requests: int
    served: int
    refused: int
    failed: int
    retries: int
    duration_s: float
    """From the first arrival to the last end."""
    reuse: float
    """The share of prompt tokens that were found cached where the prompt was computed, of requests that were
    served."""
    bypassed: int
    """Requests that a decode instance served whole."""
    transferred_tokens: int
    ttft_ms: Spread
    ttft_ms_by_length: Mapping[str, Spread]
    """By the least prompt length of a class, in tokens."""
    tpot_ms: Spread
    itl_ms: Spread
    """Between two tokens of a request."""
    whole_ms: Spread
    """End to end."""
    waited_ms: Spread
    """In the router's queue."""
    good: float
    """The share of all requests that reached all goals."""
    good_per_s: float
    balance: float
    """The busiest instance's busy time as a multiple of its role's mean; of the role where it is worst."""
    prefill_use: float
    """The mean of the instances."""
    decode_use: float
    preemptions: int
    decision_us: Spread
    """This machine's time for letting a request in and deciding where it goes, by its clock: what else the
    machine does is in it, more in the mean than in the median."""
    instances: Mapping[str, OfInstance]


def figures_of(records: Sequence[Record], uses: Mapping[str, Use], goals: Goals) -> Figures:
    """The figures of a run that is over; `uses`: by instance, whose first letter is its role."""
    served = [record for record in records if record.end is End.SERVED]
    ttft = _array(record.ttft_s for record in served)
    tpot = _array(record.tpot_s for record in served)
    lengths = np.array([record.input_tokens for record in served], np.int64)
    good = int(((ttft <= goals.ttft_ms) & (tpot <= goals.tpot_ms)).sum())
    first_s = min((record.asked_s for record in records), default=0.0)
    duration_s = max((record.ended_s for record in records), default=0.0) - first_s
    gaps = [gap for use in uses.values() for gap in use.gaps]
    prompts = int(lengths.sum())
    instances = {
        address: OfInstance(
            requests=sum(address in {record.prefill_on, record.decode_on} for record in records),
            prefill_use=_share(use.prefill_s, duration_s),
            decode_use=_share(use.decode_s, duration_s),
            steps=use.steps,
            prefilled_tokens=use.prefilled_tokens,
            generated_tokens=use.generated_tokens,
            preemptions=use.preemptions,
            over_time=_over_time(use, first_s + duration_s),
        )
        for address, use in uses.items()
    }
    return Figures(
        requests=len(records),
        served=len(served),
        refused=sum(record.end is End.REFUSED for record in records),
        failed=sum(record.end is End.FAILED for record in records),
        retries=sum(max(0, record.attempts - 1) for record in records),
        duration_s=duration_s,
        reuse=sum(record.reused_tokens for record in served) / prompts if prompts else NONE,
        bypassed=sum(record.bypassed for record in served),
        transferred_tokens=sum(record.external_tokens for record in served),
        ttft_ms=Spread.of(ttft),
        ttft_ms_by_length={
            str(low): Spread.of(ttft[(lengths >= low) & (lengths < high)])
            for low, high in zip(CLASSES, (*CLASSES[1:], 1 << 62), strict=True)
        },
        tpot_ms=Spread.of(tpot),
        itl_ms=Spread.of(_array(gap for gap, _ in gaps), np.array([count for _, count in gaps], np.int64)),
        whole_ms=Spread.of(_array(record.whole_s for record in served)),
        waited_ms=Spread.of(_array(record.waited_s for record in records)),
        good=_share(good, len(records)),
        good_per_s=_share(good, duration_s),
        balance=_balance(uses),
        prefill_use=_mean([each.prefill_use for each in instances.values()]),
        decode_use=_mean([each.decode_use for each in instances.values()]),
        preemptions=sum(use.preemptions for use in uses.values()),
        decision_us=Spread.of(np.array([record.decided_ns / 1000 for record in records], np.float64)),
        instances=instances,
    )


def _over_time(use: Use, end_s: float) -> list[Moment]:
    bins = math.ceil(end_s / BIN_S)
    together = max(1, math.ceil(bins / MOST_MOMENTS))
    length_s = together * BIN_S
    used: dict[int, list[Bin]] = {}
    for number, each in use.bins.items():  # few may be used of very many
        used.setdefault(number // together, []).append(each)
    moments = []
    for moment in range(math.ceil(bins / together)):
        here = used.get(moment, [])
        moments.append(
            Moment(
                at_s=moment * length_s,
                prefill_use=_share(sum(each.prefill_s for each in here), length_s),
                decode_use=_share(sum(each.decode_s for each in here), length_s),
                running=max((each.running for each in here), default=0),
                waiting=max((each.waiting for each in here), default=0),
                usage=max((each.usage for each in here), default=0.0),
            )
        )
    return moments


def _array(seconds: Iterable[float]) -> Values:
    return np.array([1000 * each for each in seconds], np.float64)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return _share(sum(values), len(values))


def _balance(uses: Mapping[str, Use]) -> float:
    busy: dict[str, list[float]] = {}
    for address, use in uses.items():
        busy.setdefault(address[0], []).append(use.prefill_s + use.decode_s)
    return max((max(each) / _mean(each) for each in busy.values() if any(each)), default=NONE)
