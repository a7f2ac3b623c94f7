"""One look at the fleet: the index is asked once for both legs, and loads are what is passed in."""

from collections.abc import Callable

import pytest

from kvevents import DEFAULT_TIER, BlockStored, PrefixIndex, Prompt
from proxy.caches.accuracy import Accuracy
from proxy.caches.expected import PredictedBlocks
from proxy.config import Admission, parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.fleet.why import Why
from proxy.phases import Phase, Role
from proxy.scheduling.question import Constraints, Question
from proxy.scheduling.view import Load, Viewer, own_load

TOKENS = list(range(100))


class Exact:
    state = "exact"
    epoch = 0


class CountedIndex(PrefixIndex):
    """Counts how often it is asked."""

    asked = 0

    def match_tier(self, prompt: Prompt, tier: str = DEFAULT_TIER) -> dict[tuple[str, int], int]:
        self.asked += 1
        return super().match_tier(prompt, tier)


def viewer(
    *roles: Role,
    index: PrefixIndex | None = None,
    limits: Admission | None = None,
    loads: Callable[[Instance, Phase, int], Load] = own_load,
) -> tuple[Fleet, Viewer]:
    """A viewer of one instance of each role, named by it."""
    fleet, index = Fleet(), index or PrefixIndex()
    for role in roles:
        instance = Instance(parse_instance(f"{role}:1", role))
        instance.came_up()
        instance.listed([ModelCard("tiny")], 0.0)
        instance.is_followed({0: Exact()})
        fleet.add(instance)
        index.store(instance.address, 0, BlockStored([1, 2], None, TOKENS[:20], 10, medium="GPU"))
    made = Viewer(
        fleet,
        index,
        PredictedBlocks(),
        Accuracy(index.holds),
        limits=limits or Admission(),
        tier_costs={},
        loads=loads,
    )
    return fleet, made


def test_the_index_is_asked_once_for_both_legs() -> None:
    index = CountedIndex()
    _, made = viewer(Role.PREFILL, Role.DECODE, index=index)
    view = made.look(Question("tiny", Prompt(TOKENS), 100), 0.0, Constraints())
    assert [c.cached_tokens for c in (*view.prefill, *view.decode)] == [20, 20]
    assert index.asked == 1


@pytest.mark.parametrize(
    ("roles", "whole", "prefill", "decode"),
    [
        ((Role.PREFILL, Role.DECODE), False, ["prefill:1"], ["decode:1"]),
        ((Role.PREFILL, Role.DECODE), True, [], ["decode:1"]),
        ((Role.BOTH,), False, ["both:1"], []),
        ((Role.BOTH,), True, [], ["both:1"]),
        ((Role.BOTH, Role.PREFILL), False, ["both:1", "prefill:1"], ["both:1"]),
        ((Role.DECODE,), False, [], ["decode:1"]),
    ],
)
def test_only_legs_that_may_be_sent_are_looked_at(
    roles: tuple[Role, ...], whole: bool, prefill: list[str], decode: list[str]
) -> None:
    _, made = viewer(*roles)
    view = made.look(Question("tiny", None, 100, whole), 0.0, Constraints())
    assert [c.instance for c in view.prefill] == prefill
    assert [c.instance for c in view.decode] == decode
    assert view.whole is whole


def test_loads_of_others_count_if_they_are_passed_in() -> None:
    elsewhere = {"prefill:1": 70, "decode:1": 990}

    def with_others(instance: Instance, phase: Phase, rank: int) -> Load:
        own, more = own_load(instance, phase, rank), elsewhere[instance.address]
        return own._replace(tokens=own.tokens + more, weight_tokens=own.weight_tokens + more)

    fleet, made = viewer(
        Role.PREFILL, Role.DECODE, limits=Admission(max_decode_tokens=1000), loads=with_others
    )
    fleet.claim("prefill:1", 0, Phase.PREFILL, 5)
    view = made.look(Question("tiny", None, 100), 0.0, Constraints())
    assert [c.load_tokens for c in view.prefill] == [75]
    assert [c.why for c in view.decode] == [Why.FULL]
