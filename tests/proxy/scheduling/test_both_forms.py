"""A decision that is only followed is the one that would be shown, whatever has happened to the fleet."""

import random
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents import BlockStored, PrefixIndex, Prompt
from proxy.caches.accuracy import Accuracy
from proxy.config import Admission, parse_instance
from proxy.fleet import Claim, Fleet, Instance, ModelCard
from proxy.fleet.circuit import Breaker
from proxy.fleet.claims import Timing
from proxy.phases import Phase, Role
from proxy.request.deadlines import Goal
from proxy.scheduling.decision import Decision, Pick
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import POLICIES, LeastMs
from proxy.scheduling.question import Question
from proxy.scheduling.standing import MAX_MODELS, Standing
from proxy.scheduling.types import AnyPolicy, Candidate, Leg

ROLES = (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE, Role.BOTH, Role.BOTH)
BLOCK = 4
PROMPTS = [[shared] * 16 + [last] * 24 for shared in (1, 2) for last in (3, 4)]


NOBODY = frozenset[str]()


class Feed:
    """An event source that is what it is told to be."""

    epoch = 0

    def __init__(self) -> None:
        self.state = "exact"


class Doubtful(Accuracy):
    """Trusts whom it is told to trust."""

    def __init__(self) -> None:
        super().__init__(lambda _instance, _rank, _key: True)
        self.doubted: set[tuple[str, int]] = set()

    def trusted(self, instance: str, rank: int) -> bool:
        return (instance, rank) not in self.doubted


class Own:
    """A user's policy, which sees all there is and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[list[Candidate]] = []

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        self.seen.append([c for c in candidates if leg])
        return [c.load_tokens + 10 * (c.index != "exact") + c.rank for c in candidates]


class Scene:
    """A fleet of all roles, and two placements before it that are told the same."""

    def __init__(self, make: Callable[[], AnyPolicy], limits: Admission, there: Sequence[bool]) -> None:
        self.now = 1000.0
        self.fleet, self.index, self.accuracy = Fleet(), PrefixIndex(), Doubtful()
        self.claims: list[Claim] = []
        self.hashes = 0
        self.policies = make(), make()
        self.placements = [
            Placement(
                self.fleet,
                self.index,
                policy,
                "any",
                clock=lambda: self.now,
                rng=random.Random(5),
                limits=limits,
                accuracy=self.accuracy,
                tier_costs={"CPU": 0.25},
            )
            for policy in self.policies
        ]
        for number, role in enumerate(ROLES):
            if there[number]:
                instance = Instance(
                    parse_instance(f"i{number}:1", role), Breaker(slow_start_s=8.0, joins=True)
                )
                instance.breaker.answered(self.now - 20)
                instance.listed([ModelCard("m", max_model_len=100)], self.now)
                instance.is_followed({rank: Feed() for rank in range(1 + number % 2)})
                instance.came_up()
                self.fleet.add(instance)

    def ranks(self, address: str) -> Sequence[int]:
        instance = self.fleet.get(address)
        return () if instance is None else instance.ranks

    def happens(self, what: str, number: int, amount: int) -> None:
        instance = self.fleet.get(f"i{number}:1")
        self.now += amount / 64
        if instance is None:
            return
        breaker, rank = instance.breaker, amount % len(instance.ranks)
        phase = Phase.PREFILL if instance.takes(Phase.PREFILL) and amount % 2 else Phase.DECODE
        match what:
            case "time":
                self.now += amount / 8
            case "leg" if instance.takes(phase):
                work = amount // 2 if phase is Phase.DECODE and amount % 3 else None
                timing = Timing(lambda: self.now, 10.0 * (amount % 4))
                claim = self.fleet.claim(instance.address, rank, phase, amount, amount * 2, work, timing)
                self.claims.append(claim)
            case "computed" if self.claims:
                self.claims[amount % len(self.claims)].computed()
            case "end" if self.claims:
                self.claims.pop(amount % len(self.claims)).end()
            case "served" | "engine_failed" | "others_served" | "answered":
                getattr(breaker, what)(self.now)
            case "missed" | "lost" | "busy":
                getattr(breaker, what)()
            case "down":
                instance.went_down("gone")
            case "up":
                instance.came_up()
            case "drain":
                instance.drain()
            case "undrain":
                instance.undrain()
            case "lists":
                cards = [ModelCard(name, max_model_len=20 + amount) for name in "mn"[: 1 + amount % 2]]
                instance.listed(cards, self.now)
            case "lacks":
                instance.lacks("m")
            case "full":
                instance.fullness.said(self.now, amount % 3, self.now - 1)
            case "room":
                instance.fullness.forget()
            case "doubted":
                self.accuracy.doubted ^= {(instance.address, rank)}
            case "feed":
                feed = instance.sources.get(rank)
                if isinstance(feed, Feed):
                    feed.state = ("exact", "partial", "unknown")[amount % 3]
            case "ranks":
                instance.is_followed({rank: Feed() for rank in range(amount % 3)})
            case "cached":
                blocks = 1 + amount % 6
                tokens = PROMPTS[amount % 4][: blocks * BLOCK]
                hashes: list[int | bytes] = list(range(self.hashes, self.hashes + blocks))
                self.hashes += blocks
                medium = "CPU" if amount % 5 == 0 else "GPU"
                event = BlockStored(hashes, None, tokens, BLOCK, medium=medium)
                self.index.store(instance.address, rank, event)
            case "expected":
                question = ask(PROMPTS[amount % 4])
                for placement in self.placements:
                    decision = placement.decide(question)
                    placement.granted(question, decision)
                    if decision.prefill.chosen is not None:
                        placement.expect(decision.prefill.chosen, question)
            case "removed":
                self.fleet.remove(instance.address)

    def decide(
        self,
        question: Question,
        kept: frozenset[tuple[Phase, str]],
        failed: frozenset[str] = NOBODY,
        left_ms: int | None = None,
    ) -> tuple[Decision, Decision]:
        """The decision that is shown, and the one that is followed."""
        shown, followed = self.placements
        if left_ms is not None:
            goal = Goal(1000, self.now + left_ms / 1000)
            question = msgspec.structs.replace(question, goal=goal)
        return (
            shown.decide(question, kept=kept, failed=failed),
            followed.decide(question, kept=kept, failed=failed, shown=False),
        )


def ask(tokens: list[int] | None, **more: object) -> Question:
    return Question("m", None if tokens is None else Prompt(tokens), 40, **more)  # type: ignore[arg-type]


WELL = ["time", "leg", "leg", "computed", "end", "doubted", "feed", "cached", "expected", "served"]
"""What happens to engines that are as good as any."""
ILL = [
    "engine_failed",
    "others_served",
    "answered",
    "missed",
    "lost",
    "busy",
    "down",
    "up",
    "drain",
    "undrain",
]
OTHERWISE = ["lists", "lacks", "full", "room", "ranks", "removed"]


def happenings(words: list[str]) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """What happens between two decisions: a word, an instance's number, and an amount."""
    return st.lists(st.tuples(st.sampled_from(words), st.integers(0, 5), st.integers(0, 90)), max_size=5)


QUESTIONS = st.just(ask(None)) | st.builds(
    ask,
    st.sampled_from([None, None, *PROMPTS]),
    whole=st.booleans(),
    prefix_only=st.booleans(),
    answer_tokens=st.sampled_from([1, 10, 60, 200]),
    limited_by=st.sampled_from([None, "max_tokens"]),
    generated_tokens=st.sampled_from([0, 10]),
    session=st.sampled_from([None, "a", "b"]),
)
NOTHING_KEPT = frozenset[tuple[Phase, str]]()
KEPT = st.frozensets(
    st.tuples(st.sampled_from(Phase), st.integers(0, 5).map("i{}:1".format)), max_size=2
) | st.just(NOTHING_KEPT)


COURSES = st.one_of(
    st.lists(st.tuples(happenings(WELL + ILL + OTHERWISE), QUESTIONS, KEPT), min_size=1, max_size=6),
    st.lists(st.tuples(happenings(WELL), QUESTIONS, st.just(NOTHING_KEPT)), min_size=2, max_size=6),
    st.lists(
        st.tuples(happenings(["full", "doubted", "feed"]), st.just(ask(None)), st.just(NOTHING_KEPT)),
        min_size=2,
        max_size=6,
    ),
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([*POLICIES.values(), Own]),
    st.sampled_from([Admission(), Admission(), Admission(max_prefill_tokens=60, max_decode_tokens=120)]),
    st.lists(st.booleans(), min_size=6, max_size=6) | st.just([True] * 6),
    COURSES,
)
def test_what_is_followed_is_what_would_be_shown(
    make: Callable[[], AnyPolicy],
    limits: Admission,
    there: list[bool],
    course: list[tuple[list[tuple[str, int, int]], Question, frozenset[tuple[Phase, str]]]],
) -> None:
    scene = Scene(make, limits, there)
    for happened, question, kept in course:
        for happening in happened:
            scene.happens(*happening)
        shown, followed = scene.decide(question, kept)
        assert chosen(shown.prefill) == chosen(followed.prefill)
        assert chosen(shown.decode) == chosen(followed.decode)
        assert followed.admissible or followed == shown, "whoever is not placed is told why"
        one, other = scene.policies
        if isinstance(one, Own) and isinstance(other, Own):
            assert one.seen == other.seen, "a user's policy is asked the same"


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([Admission(), Admission(max_prefill_tokens=60, max_decode_tokens=120)]),
    st.lists(st.booleans(), min_size=6, max_size=6) | st.just([True] * 6),
    COURSES,
    st.frozensets(st.integers(0, 5).map("i{}:1".format), max_size=3),
    st.none() | st.sampled_from([-10, 5, 20, 40, 80, 10_000]),
)
def test_least_ms_chooses_the_same_for_retries_within_limits_and_with_goals(
    limits: Admission,
    there: list[bool],
    course: list[tuple[list[tuple[str, int, int]], Question, frozenset[tuple[Phase, str]]]],
    failed: frozenset[str],
    left_ms: int | None,
) -> None:
    scene = Scene(LeastMs, limits, there)
    for happened, question, kept in course:
        for happening in happened:
            scene.happens(*happening)
        shown, followed = scene.decide(question, kept, failed, left_ms)
        assert chosen(shown.prefill) == chosen(followed.prefill)
        assert chosen(shown.decode) == chosen(followed.decode)
        assert shown.bypass == followed.bypass
        assert not followed.pairs.pairs or not followed.admissible, "not all pairs are looked at"


def test_of_equal_pairs_both_forms_draw_the_same_one() -> None:
    scene = Scene(LeastMs, Admission(), [True, True, True, True, False, False])
    for address, phase in (("i3:1", Phase.DECODE), ("i2:1", Phase.DECODE), ("i1:1", Phase.PREFILL)):
        for rank in reversed(range(len(scene.ranks(address)))):
            scene.fleet.claim(address, rank, phase, 10).end()
    drawn = set()
    for _ in range(40):
        shown, followed = scene.decide(ask(None, whole=True), NOTHING_KEPT)
        one = chosen(followed.decode)
        assert one is not None
        assert chosen(shown.decode) == one
        drawn.add((one.instance, one.rank))
        shown, followed = scene.decide(ask(None), NOTHING_KEPT, frozenset({"i2:1", "i3:1"}))
        one = chosen(followed.prefill)
        assert one is not None
        assert chosen(shown.prefill) == one
        assert chosen(shown.decode) == chosen(followed.decode)
        drawn.add((one.instance, one.rank))
    assert {instance for instance, _ in drawn} == {"i0:1", "i1:1", "i2:1", "i3:1"}, "all are drawn"


@pytest.mark.parametrize("tier", ["GPU", "CPU"])
@pytest.mark.parametrize("failed", [NOBODY, frozenset({"i3:1"})])
@pytest.mark.parametrize("limits", [Admission(), Admission(max_prefill_tokens=10**6)])
def test_a_goal_leads_both_forms_from_an_idle_cache_to_one_that_is_waited_for(
    failed: frozenset[str], limits: Admission, tier: str
) -> None:
    scene = Scene(LeastMs, limits, [True, True, True, True, False, False])
    number = 5 if tier == "CPU" else 4
    scene.happens("cached", 0, number)
    scene.fleet.claim("i0:1", 0, Phase.PREFILL, 10, timing=Timing(lambda: scene.now, 6.0))

    def place(left_ms: int | None) -> str:
        shown, followed = scene.decide(ask(PROMPTS[number % 4]), NOTHING_KEPT, failed, left_ms)
        one = chosen(followed.prefill)
        assert one is not None
        assert chosen(shown.prefill) == one
        return one.instance

    assert place(None) != "i0:1"
    assert place(10_000) == "i0:1"
    assert place(1) != "i0:1"


def chosen(pick: Pick) -> Candidate | None:
    """What became of one leg; that of which nothing else is told is not shown without reason."""
    assert pick.candidates or pick.chosen is None or pick.chosen.usable
    return pick.chosen


def test_of_those_that_are_well_nothing_but_the_chosen_is_told() -> None:
    scene = Scene(POLICIES["least_load"], Admission(), [True] * 6)
    _, followed = scene.placements
    decision = followed.decide(ask(None), shown=False)
    assert decision.admissible
    assert (decision.prefill.candidates, decision.decode.candidates) == ((), ())
    for instance in scene.fleet:
        instance.drain()
    decision = followed.decide(ask(None), shown=False)
    assert [len(pick.candidates) for pick in (decision.prefill, decision.decode)] == [6, 6]


def test_of_models_that_clients_name_a_few_are_remembered() -> None:
    scene = Scene(POLICIES["least_load"], Admission(), [True] * 6)
    standing = Standing(scene.fleet)
    for number in range(2 * MAX_MODELS):
        assert not standing.served(Phase.DECODE, f"model-{number}").ranks
        assert len(standing._served) <= MAX_MODELS
    assert len(standing.served(Phase.DECODE, "m").instances) == 4
