"""What the model learns is a function of what happened: no clock is read here, and no engine asked.

Prefill is learned from the prefill legs that were served, by what their engines counted where they told it.
All other work on an instance is unknown: legs that failed or were left, and decode legs, which do not tell
when their first token came.
"""

from collections.abc import Callable

from proxy.happenings import Happening, InstanceRemoved, LegEnded
from proxy.latency.fits import PoolName
from proxy.latency.model import LatencyModel
from proxy.latency.service_times import Leg
from proxy.phases import Phase

SERVED = "served"
"""The outcome of a leg that did what it was sent for."""


class LatencyLearner:
    """Feeds a model; a consumer of happenings."""

    hears = (LegEnded, InstanceRemoved)

    def __init__(self, model: LatencyModel, pool_of: Callable[[str], PoolName | None]) -> None:
        """`pool_of`: the role and the model of an instance; None if it is not there."""
        self._model = model
        self._pool_of = pool_of

    def hear(self, happening: Happening) -> None:
        """Take a happening."""
        match happening:
            case LegEnded():
                self._leg_ended(happening)
            case InstanceRemoved(instance=instance):
                self._model.forget(instance)
            case _:
                pass

    def _leg_ended(self, leg: LegEnded) -> None:
        name = self._pool_of(leg.instance)
        if name is None:
            return
        self._model.join(leg.instance, name.role, name.model)
        if leg.phase is Phase.PREFILL:
            self._model.leg_ended(leg.instance, _prefill(leg), rank=leg.rank)
        else:
            self._model.unknown_work(leg.instance, leg.began_at, leg.ended_at, rank=leg.rank)


def _prefill(leg: LegEnded) -> Leg:
    prompt, reported = leg.prompt_tokens, leg.reported
    uncached = leg.uncached if prompt is None or reported is None else prompt - reported
    return Leg(
        began_at=leg.began_at,
        ended_at=leg.ended_at,
        uncached_tokens=uncached,
        prompt_tokens=prompt or 0,
        served=leg.outcome == SERVED and prompt is not None,
    )
