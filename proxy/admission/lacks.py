"""What a decision lacks says what the request waits for: room, or a usable instance."""

from typing import NamedTuple

from proxy.fleet.why import NO_ROOM, Why
from proxy.phases import Phase
from proxy.scheduling.decision import Decision, Pick
from proxy.scheduling.question import Question


class Lack(NamedTuple):
    """What a request lacks to be placed; all is empty if it lacks nothing."""

    missing: tuple[Phase, ...] = ()
    """The phases for which no instance is usable, whatever its room."""
    full: frozenset[tuple[Phase, str]] = frozenset()
    """The instances without room for it, of each phase that found no place."""
    engines_full: bool = False
    """Whether a phase found no place only because engines said they are full: no instance of it is full by
    kvproxy's limits."""


NOTHING = Lack()


def lack_of(question: Question, decision: Decision) -> Lack:
    """What a decision lacks."""
    if decision.admissible:
        return NOTHING
    picks = {Phase.PREFILL: decision.prefill, Phase.DECODE: decision.decode}
    phases = (Phase.DECODE,) if question.whole else tuple(Phase)
    without = {phase: _full(picks[phase]) for phase in phases if not picks[phase].possible}
    return Lack(
        missing=tuple(phase for phase, full in without.items() if not full),
        full=frozenset((phase, instance) for phase, full in without.items() for instance in full),
        engines_full=any(full and set(full.values()) == {Why.SAYS_FULL} for full in without.values()),
    )


def _full(pick: Pick) -> dict[str, Why]:
    """The instances of a phase that are worth waiting for, and why. If ranks of one differ, kvproxy's limits
    count.
    """
    found: dict[str, Why] = {}
    for candidate in (priced.candidate for priced in pick.candidates):
        if candidate.why in NO_ROOM and found.get(candidate.instance) is not Why.FULL:
            found[candidate.instance] = candidate.why
    return found
