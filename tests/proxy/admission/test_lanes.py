"""Who is let in when, as transcripts without a loop: what happens goes in, grants and refusals come out."""

from collections import Counter
from typing import Any

import pytest

from kvevents import PrefixIndex, Prompt
from proxy.admission import Lanes, Ticket
from proxy.admission.turns import Admitted, Grant, Outcome, Refusal, Turn
from proxy.config import Admission, Config, Rules, WhenNoPrefill, parse_instance
from proxy.errors import RequestError
from proxy.fleet import Claim, Fleet, Instance, ModelCard
from proxy.happenings import Happening, NoPrefill, QueueLeft, Refused
from proxy.phases import Role
from proxy.request.deadlines import Goal
from proxy.scheduling.bypass import Bypass
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import LeastLoad
from proxy.scheduling.policies.least_ms import LeastMs
from proxy.scheduling.question import Question
from proxy.scheduling.types import AnyPolicy, View


class Book:
    """Keeps what the lanes tell."""

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self.waits: list[float] = []
        self.missed: list[str] = []

    def __call__(self, happening: Happening) -> None:
        match happening:
            case QueueLeft(seconds):
                self.waits.append(seconds)
            case Refused(reason):
                self.refusals[reason] += 1
            case NoPrefill(action):
                self.missed.append(action)


class Scene:
    """A prefill and a decode instance for 100 tokens each, at a time that is set by hand."""

    def __init__(
        self, policy: AnyPolicy | None = None, *, bypass_tokens: int | None = None, **limits: Any
    ) -> None:
        self.now = 0.0
        self.fleet = Fleet()
        self.book = Book()
        self.wakes = 0
        config = Admission(**({"queue_timeout_s": 20.0, "max_decode_tokens": 100} | limits))
        self.placement = Placement(
            self.fleet,
            PrefixIndex(),
            policy or LeastLoad(),
            "policy",
            clock=lambda: self.now,
            limits=config,
            bypass_tokens=lambda: bypass_tokens,
        )
        for role in (Role.PREFILL, Role.DECODE):
            instance = Instance(parse_instance(f"{role}:1", role))
            instance.listed([ModelCard("tiny")], 0.0)
            instance.came_up()
            self.fleet.add(instance)
        self.lanes = Lanes(
            fleet=self.fleet,
            placement=self.placement,
            rules=Rules(Config(model="tiny", admission=config)),
            tell=self.book,
            wake=self._wake,
        )
        self.claims: dict[str, list[Claim]] = {}
        self.names: dict[Turn, str] = {}

    def _wake(self) -> None:
        self.wakes += 1

    def instance(self, role: Role) -> Instance:
        found = self.fleet.get(f"{role}:1")
        assert found is not None
        return found

    def told(self, outcomes: list[Outcome]) -> list[str]:
        """What was decided, in words; whoever is let in keeps its claim for decode, its prefill is over."""
        words = []
        for outcome in outcomes:
            name = self.names[outcome.turn]
            if isinstance(outcome, Refusal):
                assert isinstance(outcome.error, RequestError)
                words.append(f"{name}: {outcome.error.reason}")
                continue
            words.append(name)
            admitted = outcome.admitted
            assert admitted.prefill is not None
            admitted.prefill.end()
            admitted.expected.settle(came=False)
            self.claims[name] = [admitted.decode]
        return words

    def turn(
        self,
        name: str,
        tokens: int,
        client: str,
        ticket: Ticket | None,
        model: str,
        goal: Goal | None = None,
    ) -> Turn:
        turn = self.lanes.turn(ticket or Ticket(client), Question(model, None, tokens, goal=goal))
        self.names[turn] = name
        return turn

    def offer(
        self,
        name: str,
        tokens: int,
        client: str = "",
        *,
        ticket: Ticket | None = None,
        model: str = "tiny",
        goal: Goal | None = None,
    ) -> list[str]:
        return self.told(self.lanes.offer(self.turn(name, tokens, client, ticket, model, goal), self.now))

    def end(self, name: str) -> None:
        for claim in self.claims.pop(name):
            claim.end()

    def look(self) -> list[str]:
        assert self.lanes.due
        return self.told(self.lanes.changed(self.now))

    def of(self, name: str) -> Turn:
        return next(turn for turn, each in self.names.items() if each == name)


def test_requests_that_fit_are_let_in_at_once_and_the_rest_when_room_comes() -> None:
    scene = Scene()
    assert scene.offer("a", 60) == ["a"]
    assert scene.offer("b", 60) == []
    assert scene.offer("c", 40) == [], "b's turn comes first"
    assert (len(scene.lanes), scene.lanes.due) == (2, False)
    scene.now = 3.0
    scene.end("a")
    assert scene.look() == ["b", "c"]
    assert (len(scene.lanes), scene.book.waits) == (0, [3.0, 3.0])


@pytest.mark.parametrize("policy", [LeastLoad(), LeastMs()])
def test_what_no_model_computes_waits_for_no_room(policy: AnyPolicy) -> None:
    scene = Scene(policy, bypass_tokens=0)
    counts_tokens = Question("tiny", None, 500, whole=True, computes=False)

    def served_on() -> Instance:
        turn = scene.lanes.turn(Ticket(""), counts_tokens)
        [outcome] = scene.lanes.offer(turn, scene.now)
        assert isinstance(outcome, Grant)
        outcome.admitted.close()
        return outcome.admitted.decode.instance

    assert scene.offer("a", 90) == ["a"]
    assert scene.offer("b", 90) == []
    decode = scene.instance(Role.DECODE)
    assert served_on() is decode
    decode.drain()
    assert served_on() is scene.instance(Role.PREFILL)


def test_one_look_serves_all_that_changes_together() -> None:
    scene = Scene()
    scene.offer("a", 50)
    scene.offer("b", 50)
    scene.offer("c", 100)
    before = scene.wakes
    scene.end("a")
    scene.end("b")
    assert scene.wakes - before == 1
    assert scene.look() == ["c"]
    assert not scene.lanes.due


def test_requests_granted_together_are_claimed_in_that_moment() -> None:
    scene = Scene()
    scene.offer("a", 100)
    for name in "bcd":
        scene.offer(name, 50)
    scene.end("a")
    outcomes = scene.lanes.changed(scene.now)
    assert [scene.names[outcome.turn] for outcome in outcomes] == ["b", "c"]
    decode, prefill = scene.instance(Role.DECODE), scene.instance(Role.PREFILL)
    assert (decode.running_tokens(), prefill.running_legs()) == (100, 2)
    gone, stays = outcomes
    assert isinstance(gone, Grant)
    gone.admitted.close()  # its client has left
    assert decode.running_tokens() == 50
    scene.told([stays])
    assert decode.running_tokens() == 50
    assert scene.look() == ["d"]


def test_a_client_that_left_without_a_word_is_passed_over() -> None:
    scene = Scene()
    scene.offer("a", 100)
    scene.offer("b", 100)
    scene.offer("c", 100)
    scene.end("a")
    gone = scene.of("b")
    assert scene.told(scene.lanes.changed(scene.now, lambda turn: turn is gone)) == ["c"]
    assert len(scene.lanes) == 0


def test_a_request_that_leaves_makes_way() -> None:
    scene = Scene()
    scene.offer("a", 60)
    scene.offer("long", 90)
    scene.offer("short", 30)
    scene.now = 2.0
    scene.lanes.leave(scene.of("long"), scene.now)
    assert scene.look() == ["short"]
    scene.lanes.leave(scene.of("long"), scene.now)
    assert scene.book.waits == [2.0, 2.0]


def test_a_request_that_waited_too_long_is_refused_and_all_attempts_count() -> None:
    scene = Scene()
    scene.offer("a", 100)
    ticket = Ticket()
    scene.offer("b", 100, ticket=ticket)
    assert scene.lanes.left_s(scene.of("b")) == 20.0
    scene.now = 15.0
    scene.lanes.leave(scene.of("b"), scene.now)
    assert scene.offer("b again", 100, ticket=ticket) == []
    assert scene.lanes.left_s(scene.of("b again")) == 5.0
    scene.now = 20.0
    assert scene.told([scene.lanes.expire(scene.of("b again"), scene.now)]) == ["b again: queue_timeout"]
    assert scene.offer("b at last", 100, ticket=ticket) == ["b at last: queue_timeout"]
    assert scene.book.refusals == {"queue_timeout": 2}
    assert len(scene.lanes) == 0


def test_a_full_queue_refuses_or_sheds_for_a_client_with_less() -> None:
    scene = Scene(max_queue=2)
    scene.offer("a", 100)
    for n in range(2):
        assert scene.offer(f"greedy{n}", 100, "greedy") == []
    assert scene.offer("greedy2", 100, "greedy") == ["greedy2: queue_full"]
    assert scene.offer("modest", 100, "modest") == ["greedy1: shed"]
    assert scene.book.refusals == {"queue_full": 1, "shed": 1}


def test_an_engine_that_is_full_is_looked_at_again_when_its_moment_is_over() -> None:
    scene = Scene()
    scene.instance(Role.DECODE).fullness.said(0.0, 0, 0.0, 4.0)
    assert scene.lanes.look_again_in_s(0.0) is None, "nobody waits"
    assert scene.offer("a", 10) == []
    assert scene.lanes.look_again_in_s(1.0) == pytest.approx(3.0)
    scene.now = 4.0
    assert scene.told(scene.lanes.changed(scene.now)) == ["a"]


def test_a_request_that_no_instance_will_serve_is_refused_not_kept() -> None:
    scene = Scene(when_no_prefill=WhenNoPrefill.FAIL)
    scene.instance(Role.DECODE).drain()
    assert scene.offer("a", 10) == []
    scene.instance(Role.PREFILL).drain()
    assert scene.look() == ["a: no_prefill"]


def of(name: str, scene: Scene, tokens: int) -> list[Outcome]:
    """Offer a request whose prompt is known."""
    turn = scene.lanes.turn(Ticket(), Question("tiny", Prompt(list(range(tokens))), tokens))
    scene.names[turn] = name
    return scene.lanes.offer(turn, scene.now)


def let_in(outcomes: list[Outcome]) -> list[Admitted]:
    return [outcome.admitted for outcome in outcomes if isinstance(outcome, Grant)]


def test_a_request_without_a_prefill_leg_does_not_wait_for_prefill_instances() -> None:
    scene = Scene(bypass_tokens=20, max_prefill_tokens=100, max_decode_tokens=500)
    (first,) = let_in(of("first", scene, 90))
    assert first.prefill is not None
    assert of("long", scene, 90) == []
    (short,) = let_in(of("short", scene, 20))
    assert (short.prefill, short.decision.bypass) == (None, Bypass.SHORT)
    assert (short.decode.prefill_tokens, short.decode.tokens) == (20, 20)
    assert of("not short", scene, 21) == [], "behind the long one"
    first.prefill.end()
    outcomes = scene.lanes.changed(scene.now)
    assert [scene.names[outcome.turn] for outcome in outcomes] == ["long"]


@pytest.mark.parametrize("action", list(WhenNoPrefill))
def test_a_request_without_a_prefill_leg_misses_no_prefill_instance(action: WhenNoPrefill) -> None:
    scene = Scene(bypass_tokens=20, when_no_prefill=action, max_decode_tokens=0)
    scene.instance(Role.PREFILL).drain()
    assert [a.decision.bypass for a in let_in(of("short", scene, 20))] == [Bypass.SHORT]
    assert not scene.book.missed
    outcomes = of("long", scene, 21)
    assert scene.book.missed == [action]
    assert [a.decision.bypass for a in let_in(outcomes)] == (
        [Bypass.NO_PREFILL] if action is WhenNoPrefill.DECODE else []
    )


class Alone:
    """A policy of pairs that prefers one leg."""

    unit = "legs"
    weighs_bypass = True

    def prices(self, view: View) -> list[float]:
        return [1.0 if pair.one_leg else 2.0 for pair in view.pairs]


@pytest.mark.parametrize("action", list(WhenNoPrefill))
def test_a_policy_that_prefers_one_leg_does_not_overrule_what_no_prefill_means(action: WhenNoPrefill) -> None:
    scene = Scene(Alone(), when_no_prefill=action, max_decode_tokens=0)
    assert [a.decision.bypass for a in let_in(of("before", scene, 9))] == [Bypass.POLICY]
    scene.instance(Role.PREFILL).drain()
    outcomes = of("after", scene, 9)
    assert scene.book.missed == [action]
    assert [a.decision.bypass for a in let_in(outcomes)] == (
        [Bypass.NO_PREFILL] if action is WhenNoPrefill.DECODE else []
    )


def test_a_policy_that_prefers_one_leg_waits_for_room_on_prefill_instances_as_all_do() -> None:
    scene = Scene(Alone(), max_prefill_tokens=100, max_decode_tokens=0)
    (first,) = let_in(of("first", scene, 90))
    assert first.prefill is None
    (second,) = let_in(of("second", scene, 90))
    assert second.prefill is not None, "there is no room to compute it on the decode instance"
    assert of("third", scene, 90) == []
    first.decode.computed()
    assert let_in(scene.lanes.changed(scene.now)) == []
    second.prefill.end()
    (third,) = let_in(scene.lanes.changed(scene.now))
    assert third.decision.bypass is Bypass.POLICY


class AnyPair:
    """A policy of pairs to which all are the same."""

    unit = "nothing"

    def prices(self, view: View) -> list[float]:
        return [0.0 for _ in view.pairs]


@pytest.mark.parametrize("policy", [LeastLoad(), AnyPair()], ids=["legs", "pairs"])
def test_who_could_be_prefilled_waits_for_a_decode_instance_and_misses_no_other(policy: AnyPolicy) -> None:
    scene = Scene(policy, when_no_prefill=WhenNoPrefill.FAIL)
    scene.instance(Role.DECODE).drain()
    assert scene.offer("a", 10) == []
    scene.now = 20.0
    refusal = scene.lanes.expire(scene.of("a"), scene.now)
    assert scene.told([refusal]) == ["a: no_engine"]
    assert str(refusal.error).startswith("no decode instance")


def test_what_is_full_for_the_first_of_a_lane_is_closed_to_other_lanes() -> None:
    scene = Scene()
    for instance in scene.fleet:
        instance.listed([ModelCard("tiny"), ModelCard("alpha", "tiny")], 0.0)
    scene.offer("a", 60)
    assert scene.offer("long", 90) == []
    assert scene.offer("other lane", 10, model="alpha") == [], "it would fit"
    scene.end("a")
    assert scene.look() == ["long", "other lane"]


def test_a_stop_refuses_who_waits_and_who_comes_but_no_retry() -> None:
    scene = Scene()
    before = Ticket()
    scene.offer("a", 100, ticket=before)
    scene.offer("b", 100)
    assert scene.told(scene.lanes.close(0.0)) == ["b: stopping"]
    assert scene.offer("c", 1) == ["c: stopping"]
    assert scene.offer("a again", 100, ticket=before) == ["a again"]


def test_what_would_come_far_later_than_it_is_wanted_is_refused_if_so_configured() -> None:
    soon, late = Goal(1_000_000, 1000.0), Goal(1, 0.001)
    for factor, words in ((0.0, ["b"]), (2.0, ["b: late"])):
        scene = Scene(LeastMs(), bypass_tokens=0, refuse_late=factor)
        assert scene.offer("a", 10, goal=soon) == ["a"]
        assert scene.offer("b", 10, goal=late) == words
        assert scene.offer("c", 10) == ["c"]
        assert scene.book.refusals == ({"late": 1} if factor else {})


def test_a_request_that_a_decode_instance_serves_for_want_of_prefill_is_refused_as_well() -> None:
    scene = Scene(
        LeastMs(), bypass_tokens=0, refuse_late=2.0, when_no_prefill=WhenNoPrefill.DECODE, max_decode_tokens=0
    )
    scene.instance(Role.PREFILL).drain()
    assert scene.offer("b", 10, goal=Goal(1, 0.001)) == ["b: late"]


def test_a_retry_is_not_refused_however_late() -> None:
    scene, ticket = Scene(LeastMs(), bypass_tokens=0, refuse_late=1.0), Ticket()
    assert scene.offer("a", 10, ticket=ticket) == ["a"]
    assert scene.offer("b", 10, ticket=ticket, goal=Goal(1, 0.001)) == ["b"]


def test_a_request_that_waited_past_its_goal_is_refused_as_room_comes() -> None:
    scene = Scene(LeastMs(), bypass_tokens=0, refuse_late=2.0)
    assert scene.offer("a", 100) == ["a"]
    assert scene.offer("b", 100, goal=Goal(2000, 2.0)) == []
    scene.now = 10.0
    scene.end("a")
    assert scene.look() == ["b: late"]


def test_a_policy_that_predicts_nothing_refuses_nobody_for_being_late() -> None:
    scene = Scene(LeastLoad(), refuse_late=1.0)
    assert scene.offer("a", 10, goal=Goal(1, 0.001)) == ["a"]
