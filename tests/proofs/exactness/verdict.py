"""What must hold after a run, told from what clients saw, from the engines' own events, and from kvproxy's
truth meter.

Pure: every check takes values and returns findings; no finding means that it held.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.proofs.exactness.history import Asked, CacheHistory
from tests.proofs.exactness.legs import Leg
from tests.proofs.exactness.looking import Meter, unexplained

SHARE = "predicted = reported on 99 % of the legs from exact slots"
EXPLAINED = "every other one was a race, as the engines' own events show"
METERED = "kvproxy's truth meter says the same: every miss is a race"
DUST = "at rest: predicted = reported = counted by the engine, always"
KNOWN = "at rest: what /explain says of each engine is what its events say"
EXACT = "at rest: every index is exact"
JOINED = "who joins late predicts 95 % within its first requests"
RETURNED = "who restarts on its state directory knows every cache exactly"
SERVED = "requests were served whenever no kill was near"
HAPPENED = "everything happened that was to happen"
HEARD = "no event was lost on its way to the judge"

MIN_SHARE = 0.99
MIN_JUDGED = 0.9
LATE_SHARE = 0.95
LATE_WINDOW = 60
"""The share of a late joiner is that of so many of its requests in a row."""

LAG_S = 0.5
"""How long an event may be on its way to kvproxy: what was so much earlier may still be what it predicts."""

Key = tuple[str, str, str]
"""Phase, kvproxy, instance."""


@dataclass(frozen=True)
class Miss:
    """A leg from an exact slot that was predicted wrong."""

    leg: Leg
    asked: Asked | None
    """None if the engine did not tell how it reads the prompt."""
    cause: str
    """`race`, or `index`."""
    told: tuple[str, ...]
    """What the engine did to these blocks meanwhile."""


def explain(leg: Leg, asked: Asked | None, history: CacheHistory) -> Miss:
    """Why a leg was predicted wrong.

    It was a race if the engine's cache was what was predicted, and after that, while the leg ran, what was
    reported.
    """
    if asked is None:
        return Miss(leg, None, "index", ("its tokens are not known",))
    begin = leg.begun - LAG_S
    courses = history.courses(asked, begin, leg.ended)
    race = any(_raced(leg, course) for course in courses)
    told = tuple(
        f"cached: {', '.join(f'{length} ({leg.ended - at:.3f} s before its end)' for at, length in course)}"
        for course in courses[: 1 if courses[0] == courses[-1] else None]
    )
    return Miss(leg, asked, "race" if race else "index", (*told, *history.told(asked, begin, leg.ended)))


def _raced(leg: Leg, course: Sequence[tuple[float, int]]) -> bool:
    lengths = [length for _, length in course]
    if leg.predicted not in lengths:
        return False
    later = range(lengths.index(leg.predicted), len(course))
    over_at = [*(at for at, _ in course[1:]), leg.ended]
    return any(lengths[n] == leg.reported and over_at[n] >= leg.begun for n in later)


@dataclass
class Row:
    """Legs of one phase to one prefill instance, as the clients saw them."""

    legs: int = 0
    exact: int = 0
    """From exact slots, with a prediction."""
    right: int = 0
    over: int = 0
    under: int = 0
    other: int = 0
    """From slots that were not exact, with a prediction."""
    other_right: int = 0
    unknown: int = 0
    """Without a prediction."""


def rows(legs: Sequence[Leg]) -> dict[Key, Row]:
    """What the clients saw, in the order of the phases."""
    found: dict[Key, Row] = defaultdict(Row)
    for leg in legs:
        if not leg.served:
            continue
        row = found[leg.phase, leg.router, leg.prefill]
        row.legs += 1
        if leg.predicted is None:
            row.unknown += 1
        elif leg.index == "exact":
            row.exact += 1
            row.right += leg.right
            row.over += leg.predicted > leg.reported
            row.under += leg.predicted < leg.reported
        else:
            row.other += 1
            row.other_right += leg.right
    return dict(found)


def check_share(legs: Sequence[Leg]) -> list[str]:
    judged = [leg for leg in legs if leg.judged]
    right = sum(leg.right for leg in judged)
    if not judged:
        return ["no leg came from an exact slot"]
    if right < MIN_SHARE * len(judged):
        return [f"{right} of {len(judged)} legs, {100 * right / len(judged):.2f} %"]
    return []


def check_judged(legs: Sequence[Leg]) -> list[str]:
    """Whether nearly all legs came from exact slots while no kill was near: legs that are not judged prove
    nothing."""
    served = [leg for leg in legs if leg.served]
    judged = sum(leg.judged for leg in served)
    if judged < MIN_JUDGED * len(served):
        return [f"only {judged} of {len(served)} legs came from exact slots before the first kill"]
    return []


def _summed(meters: Mapping[str, Meter]) -> Counter[str]:
    total: Counter[str] = Counter()
    for meter in meters.values():
        for counts in meter.values():
            total.update(counts)
    return total


def check_meter_share(meters: Mapping[str, Meter]) -> list[str]:
    """`meters` by kvproxy."""
    total = _summed(meters)
    compared = total["legs"] - total["unreported"]
    if compared <= 0:
        return [f"kvproxy's truth meter compared nothing: {dict(total)}"]
    if total["exact"] < MIN_SHARE * compared:
        share = f"{100 * total['exact'] / compared:.2f} %"
        return [f"kvproxy's truth meter: {total['exact']} of {compared} legs, {share}"]
    return []


def check_meter(meters: Mapping[str, Meter], untold: int = 0) -> list[str]:
    """`meters` by kvproxy; `untold` are the misses whose cause a kill kept it from telling."""
    total = _summed(meters)
    found = []
    misses = {name: count for name, count in total.items() if name.startswith("miss ") and count}
    if others := {name: count for name, count in misses.items() if name != "miss race"}:
        found.append(f"misses that are no races: {others}")
    if unexplained(total) != untold:
        found.append(f"{total['over']} over, {total['under']} under, but explained are {misses}")
    return found


def late_shares(legs: Sequence[Leg]) -> list[tuple[int, float]]:
    """After each so many of the late joiner's requests, the share of right predictions in the window
    before."""
    served = [leg for leg in sorted(legs, key=lambda leg: leg.begun) if leg.served]
    return [
        (end, sum(leg.right for leg in served[end - LATE_WINDOW : end]) / LATE_WINDOW)
        for end in range(LATE_WINDOW, len(served) + 1)
    ]


def check_late(legs: Sequence[Leg], requests: int) -> list[str]:
    """Unknown predictions are wrong ones here."""
    shares = [(end, share) for end, share in late_shares(legs) if end <= requests]
    if not shares:
        return [f"it got no more than {sum(leg.served for leg in legs)} requests served"]
    if shares[-1][1] >= LATE_SHARE:
        return []
    end, last = shares[-1]
    best_end, best = max(shares, key=lambda each: each[1])
    return [
        f"{last:.0%} of the {LATE_WINDOW} requests up to its {end}th; at best {best:.0%}, at its {best_end}th"
    ]


@dataclass(frozen=True)
class QuietLeg:
    """A request that was alone, and by how many cached tokens each prefill engine's own counter grew."""

    leg: Leg
    counted: Mapping[str, int]

    @property
    def words(self) -> str | None:
        """What is wrong, None if nothing is."""
        leg = self.leg
        if not leg.served:
            return f"not served: {leg.error}"
        here = self.counted.get(leg.prefill, 0)
        elsewhere = sum(self.counted.values()) - here
        if leg.predicted == leg.reported == here and not elsewhere:
            return None
        return (
            f"predicted {leg.predicted}, reported {leg.reported}, counted by {leg.prefill} {here},"
            f" by others {elsewhere}"
        )


def check_quiet(quiet: Sequence[QuietLeg]) -> list[str]:
    """Legs whose slot is not exact are not counted here; EXACT says that they must be."""
    judged = [each for each in quiet if each.leg.index == "exact"]
    if not judged:
        return ["no leg came from an exact slot"]
    return [
        (
            f"{each.leg.id} ({each.leg.router}, {each.leg.plan.kind}, {each.leg.prompt_tokens} tokens): "
            f"{each.words}"
        )
        for each in judged
        if each.words is not None
    ]


@dataclass(frozen=True)
class Told:
    """What /explain says of one engine for one prompt, at rest."""

    router: str
    kind: str
    address: str
    index: str
    cached_tokens: int | None
    lengths: frozenset[int]
    """What the engine has cached of it, by its events."""

    @property
    def right(self) -> bool:
        return self.cached_tokens in self.lengths


def check_told(told: Sequence[Told]) -> list[str]:
    """Exact slots only."""
    exact = [each for each in told if each.index == "exact"]
    if not any(max(each.lengths) for each in exact):
        return [f"none of {len(exact)} prompts is cached in an exact slot"]
    return [
        f"{each.router}: {each.cached_tokens} tokens of a prompt ({each.kind}) at {each.address},"
        f" by its events {sorted(each.lengths)}"
        for each in exact
        if not each.right
    ]


def check_served(legs: Sequence[Leg], kills: Sequence[tuple[float, float]]) -> list[str]:
    """`kills` are the times from each kill until all was well again."""
    return [
        f"{leg.id} ({leg.phase}, {leg.plan.kind}, at {leg.begun:.2f}): status {leg.status}, {leg.error}"
        for leg in legs
        if not leg.served and not any(leg.begun <= end and begin <= leg.ended for begin, end in kills)
    ]
