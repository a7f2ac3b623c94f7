"""A candidate may get the leg only if no better one can take it, now or as soon as that one has room.

Pure. A candidate is better if it is set aside for a less grave reason (`ASIDE`), or for none.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from proxy.fleet.why import ASIDE, NO_ROOM, Why
from proxy.scheduling.question import Constraints
from proxy.scheduling.types import Candidate

_GRAVITY: dict[Why | None, int] = {None: 0} | {why: number for number, why in enumerate(ASIDE, start=1)}
_LEAST = (0, False)


def eligible(
    candidates: Sequence[Candidate], aside: Mapping[str, Why], constraints: Constraints
) -> Sequence[Candidate]:
    """The candidates for one leg; of the usable ones only those stay usable that the policy may choose from.

    `aside`: the instances that are used only if there is no better one, and why.
    """
    failed, tried, prefer = constraints.failed, constraints.tried, constraints.prefill_on
    if not (aside or failed or tried or prefer) and not any(c.why in NO_ROOM for c in candidates):
        return candidates  # all are equally good, which is the case at nearly every decision
    if tried:
        candidates = [
            _set_aside(c, Why.FAILED) if c.usable and c.instance in tried else c for c in candidates
        ]

    def gravity(candidate: Candidate) -> tuple[int, bool]:
        why = aside.get(candidate.instance)
        if candidate.why is Why.SAYS_FULL:  # at least as grave as a slow start
            why = why or ASIDE[0]
        return _GRAVITY[why], candidate.why in NO_ROOM

    def least_grave(some: Collection[Candidate]) -> list[Candidate]:
        least = min(map(gravity, some), default=None)
        return [c for c in some if gravity(c) == least]

    # Candidates without room count: a worse one is not used while waiting for room there makes sense.
    there = [c for c in candidates if c.usable or c.why in NO_ROOM]
    best = [c for c in there if c.usable and c.instance == prefer and gravity(c) == _LEAST]
    best = best or least_grave([c for c in there if c.instance not in failed])
    if all(c.why is Why.SAYS_FULL for c in best):
        # Rather than wait, use an instance that failed this request once and is otherwise well.
        times = Counter(failed)
        best = least_grave([c for c in there if times[c.instance] < 2]) or least_grave(there)
    if not best:
        return candidates
    stay = {(c.instance, c.rank) for c in best}
    instances = {c.instance for c in best}

    def is_as_it_is(candidate: Candidate) -> bool:
        if (candidate.instance, candidate.rank) in stay or candidate.why is Why.SAYS_FULL:
            return True
        # For a rank without room, FULL says more than the reason for which its instance is set aside.
        return not candidate.usable and (candidate.why is not Why.FULL or candidate.instance in instances)

    return [
        c if is_as_it_is(c) else _set_aside(c, aside.get(c.instance, c.why or Why.FAILED)) for c in candidates
    ]


def _set_aside(candidate: Candidate, why: Why) -> Candidate:
    return msgspec.structs.replace(candidate, usable=False, why=why)
