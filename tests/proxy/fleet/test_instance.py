"""An instance, verb by verb: what is known of it afterwards, and whether those who wait for a change hear of
it."""

from collections.abc import Callable

import pytest

from proxy.config import parse_instance
from proxy.fleet import Fleet, Instance, ModelCard, Status
from proxy.phases import Phase, Role

TINY, ALPHA = ModelCard("tiny", max_model_len=512), ModelCard("alpha", "tiny")
LISTS = [TINY, ALPHA]

Verb = Callable[[Instance], object]

VERBS: dict[str, Verb] = {
    "came up": lambda i: i.came_up(),
    "fell asleep": lambda i: i.fell_asleep(),
    "went down": lambda i: i.went_down("refused"),
    "was refused": lambda i: i.was_refused("serves 'other'"),
    "could not be asked": lambda i: i.could_not_be_asked("no socket"),
    "circuit opened": lambda i: i.circuit_opened("its legs failed"),
    "circuit closed": lambda i: i.circuit_closed(),
    "drain": lambda i: i.drain(),
    "undrain": lambda i: i.undrain(),
    "lists": lambda i: i.listed(LISTS, 0.0),
    "lacks alpha": lambda i: i.lacks("alpha"),
    "lists nothing new": lambda i: i.lists_nothing_new("status 503"),
}


class Heard:
    """One instance in a fleet, and how often the fleet has announced a change."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.instance = Instance(parse_instance("a:1", Role.BOTH))
        self.fleet.add(self.instance)
        self.announced = 0
        self.fleet.listen(self._hear)

    def _hear(self) -> None:
        self.announced += 1

    def say(self, *verbs: str) -> bool:
        """Say them, and tell whether the last one was announced."""
        for verb in verbs:
            self.announced = 0
            VERBS[verb](self.instance)
        return self.announced > 0


@pytest.mark.parametrize(
    ("verbs", "announced", "state", "why_down"),
    [
        (["came up"], True, "up", None),
        (["came up", "came up"], False, "up", None),
        (["came up", "fell asleep"], True, "asleep", None),
        (["went down"], True, "down", "refused"),
        (["went down", "went down"], False, "down", "refused"),
        (["went down", "came up"], True, "up", None),
        (["went down", "fell asleep"], True, "asleep", None),
        (["was refused"], True, "refused", "serves 'other'"),
        (["was refused", "came up"], True, "up", None),
        (["could not be asked"], False, "starting", "no socket"),
        (["went down", "could not be asked"], False, "down", "refused"),
        (["came up", "circuit opened"], False, "up", "its legs failed"),
        (["came up", "circuit opened", "circuit closed"], False, "up", None),
        (["came up", "drain"], True, "draining", None),
        (["came up", "drain", "drain"], False, "draining", None),
        (["drain", "went down"], True, "draining", "refused"),
        (["came up", "drain", "undrain"], True, "up", None),
        (["lists"], True, "starting", None),
        (["lists", "lists"], False, "starting", None),
    ],
)
def test_a_verb_changes_the_state_and_is_announced_if_it_did(
    verbs: list[str], announced: bool, state: str, why_down: str | None
) -> None:
    heard = Heard()
    assert heard.say(*verbs) is announced
    assert (heard.instance.state, heard.instance.why_down) == (state, why_down)


def test_an_instance_serves_what_it_lists_but_for_what_it_denies() -> None:
    heard = Heard()
    instance = heard.instance
    assert heard.say("lists", "lists nothing new") is False
    assert instance.models == {"tiny", "alpha"}
    assert instance.adapters == {"alpha"}
    assert instance.max_model_len == 512
    assert instance.unlisted == "status 503"
    assert heard.say("lacks alpha")
    assert instance.models == {"tiny"}
    assert heard.say("lists")
    assert instance.models == {"tiny", "alpha"}
    assert instance.unlisted is None
    for _ in range(2):
        instance.denials.denied("alpha", 0.0)
    heard.say("lists")
    assert instance.models == {"tiny"}


def test_an_engine_that_comes_back_is_another_process() -> None:
    heard = Heard()
    instance = heard.instance
    instance.pulled_from("prefill-1")
    instance.denials.denied("alpha", 0.0)
    instance.fullness.said(0.0, 1, 0.0)
    heard.say("came up", "drain", "fell asleep")
    assert instance.has_pulled_from("prefill-1")
    heard.say("went down")
    assert (instance.has_pulled_from("prefill-1"), instance.peers) == (False, 0)
    assert not instance.denials
    assert not instance.fullness.is_known


def test_what_is_known_of_an_instances_ranks() -> None:
    class Source:
        state = "exact"
        epoch = 0

    instance = Heard().instance
    assert (instance.ranks, instance.index_state(0)) == ((0,), "unknown")
    instance.told_sources("it publishes no KV events")
    assert instance.why_unheard(0) == "it publishes no KV events"
    instance.is_followed({1: Source(), 0: Source()})
    instance.told_sources(None)
    assert (instance.ranks, instance.index_state(1), instance.why_unheard(1)) == ((0, 1), "exact", None)
    assert instance.fell_silent(1, "nobody connects")
    assert not instance.fell_silent(1, "nobody connects")
    assert (instance.why_unheard(0), instance.why_unheard(1)) == (None, "nobody connects")
    instance.is_heard(1)
    assert instance.why_unheard(1) is None


def test_a_claim_counts_until_it_ends_and_its_end_is_announced() -> None:
    heard = Heard()
    with heard.fleet.claim("a:1", 0, Phase.DECODE, 100, weight_tokens=40) as claim:
        load = heard.instance.load
        assert (load.legs(), load.legs(Phase.PREFILL)) == (1, 0)
        assert (load.tokens(Phase.PREFILL, 0), load.weight_tokens(Phase.DECODE, 0)) == (100, 40)
        heard.announced = 0
    assert heard.announced == 1
    claim.end()
    assert (heard.announced, load.legs(), load.all_tokens(), load.all_weight_tokens()) == (1, 0, 0, 0)


def test_what_is_computed_makes_no_room_by_the_limits_and_is_not_announced() -> None:
    heard = Heard()
    claim = heard.fleet.claim("a:1", 0, Phase.DECODE, 100, weight_tokens=140, prefill_tokens=60)
    instance = heard.instance
    heard.announced = 0
    assert instance.running_prefill_tokens() == 60
    claim.computed()
    assert (instance.running_prefill_tokens(), instance.running_tokens()) == (0, 100)
    assert (instance.running_weight_tokens(), heard.announced) == (140, 0)
    claim.end()
    assert (instance.running_tokens(), instance.running_weight_tokens(), heard.announced) == (0, 0, 1)


def test_holds_are_counted_by_address() -> None:
    fleet = Heard().fleet
    fleet.hold_began("a:1")
    fleet.hold_began("a:1")
    fleet.hold_ended("a:1")
    assert (fleet.holds["a:1"], fleet.holds["b:1"]) == (1, 0)


def test_a_fleet_has_one_instance_at_an_address() -> None:
    fleet = Heard().fleet
    with pytest.raises(ValueError, match="a:1 is there already"):
        fleet.add(Instance(parse_instance("a:1", Role.PREFILL)))
    assert fleet.remove("a:1") is not None
    assert fleet.remove("a:1") is None
    assert Status.STARTING not in {instance.status for instance in fleet}


def test_one_that_said_it_is_full_may_be_tried_again_once_its_moment_is_over() -> None:
    heard = Heard()
    assert heard.fleet.left_alone_s(0.0) == 0.0
    heard.instance.fullness.said(10.0, 3, 9.0, come_back_s=5.0)
    assert heard.fleet.left_alone_s(12.0) == 3.0
    assert heard.fleet.left_alone_s(16.0) == 0.0, (
        "what it had room for may change later still, as `reopens_in_s` says"
    )
    assert heard.fleet.reopens_in_s(16.0) == 24.0


def test_a_fleet_tells_who_does_a_phase_in_the_order_of_coming() -> None:
    fleet = Fleet()
    first, both, last = (
        Instance(parse_instance(address, role))
        for address, role in (("z:1", Role.PREFILL), ("b:1", Role.BOTH), ("a:1", Role.DECODE))
    )
    for instance in (first, both, last):
        fleet.add(instance)
    before = fleet.of(Phase.PREFILL)
    assert (before, fleet.of(Phase.DECODE)) == ((first, both), (both, last))
    fleet.remove("b:1")
    fleet.add(again := Instance(parse_instance("b:1", Role.BOTH)))
    assert (fleet.of(Phase.PREFILL), fleet.of(Phase.DECODE)) == ((first, again), (last, again))
    fleet.remove("z:1")
    fleet.remove("nobody:1")
    assert fleet.of(Phase.PREFILL) == (again,)
    assert before == (first, both), "who looked before sees what was there then"
