"""Each part of `least_ms` is switched off here alone, by a policy that lacks it: no flag does that.

A term is taken off every price. What is no term is a function of the product that does nothing for the length
of a run.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from unittest import mock

from proxy.caches.expected import PredictedBlocks
from proxy.fleet.instance import Instance
from proxy.fleet.work import Work
from proxy.latency.learner import LatencyLearner
from proxy.scheduling.policies import LeastMs
from proxy.scheduling.terms import terms_of
from proxy.scheduling.types import AnyPolicy, Pair, View

OURS = "least_ms"


class WithoutTerms:
    """`least_ms` without some of its terms, by the prices of all pairs."""

    unit = LeastMs.unit
    reads_latency = True
    weighs_bypass = True

    def __init__(self, *names: str) -> None:
        """`names`: members of `Terms`."""
        self._names = names

    def prices(self, view: View) -> list[float]:
        """As `Policy`, in milliseconds."""
        return [self._price(pair, view) for pair in view.pairs]

    def _price(self, pair: Pair, view: View) -> float:
        terms = terms_of(pair, view)
        left_out: float = sum(getattr(terms, name) for name in self._names)
        return terms.cost_ms - left_out


class WithoutBypass(LeastMs):
    """`least_ms` in a fleet whose decode instances compute no prompts."""

    weighs_bypass = False


class Part(NamedTuple):
    """What is left out."""

    words: str
    make: Callable[[], AnyPolicy] = LeastMs
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


def _without(*names: str) -> Callable[[], AnyPolicy]:
    return lambda: WithoutTerms(*names)


def _instead(
    owner: type, name: str, function: Callable[..., object]
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def around() -> Iterator[None]:
        with mock.patch.object(owner, name, function):
            yield

    return around


def _undecayed_ms(work: Work, now_s: float) -> float:  # noqa: ARG001  # as `Work.wait_ms` has it
    return sum(each.work_ms for each in work._queue if not each.over)  # noqa: SLF001  # its own way to count


def _nothing(*_: object, **__: object) -> None:
    """What is called in the place of what is left out."""


WITHOUT: Mapping[str, Part] = {
    "least_ms-wait": Part("the prompts before it", _without("wait_ms", "decode_wait_ms")),
    "least_ms-transfer": Part("transfers and handshakes", _without("transfer_ms", "handshake_ms")),
    "least_ms-step": Part("the step of the first token", _without("step_ms")),
    "least_ms-cache": Part("the price of what is pushed out of a cache", _without("cache_price_ms")),
    "least_ms-stall": Part("the price of answers that wait for a prompt", _without("stall_price_ms")),
    "least_ms-decode": Part("the price of longer steps", _without("decode_price_ms")),
    "least_ms-bypass": Part("bypass", WithoutBypass),
    "least_ms-decay": Part(
        "the time that has passed of a prompt under way", around=_instead(Work, "wait_ms", _undecayed_ms)
    ),
    "least_ms-overlay": Part(
        "blocks that are expected", around=_instead(PredictedBlocks, "expect", _nothing)
    ),
    "least_ms-gauges": Part("the engines' gauges", around=_instead(Instance, "told_gauges", _nothing)),
    "least_ms-learning": Part("learning", around=_instead(LatencyLearner, "hear", _nothing)),
}
"""`least_ms` without a part, by name."""
