"""Why a prediction missed: what the index said, what happened meanwhile, what the engine found."""

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents import BlockRemoved, BlockStored, PrefixIndex, Prompt
from proxy.caches.accuracy import IN_DOUBT_S, Accuracy, Change, Comparison
from proxy.caches.expected import SETTLE_S
from proxy.caches.trust import MISSES_TO_DISTRUST, REBUILD_FIRST_S, Step
from proxy.shown import as_builtins

E = "e:1"
BLOCKS = 6
SIZE = 4


class Source(NamedTuple):
    state: str = "exact"
    epoch: int = 0


class Scene:
    """One rank and a prompt of six blocks; engine hashes are 1 to 6."""

    def __init__(self, **settings: Any) -> None:
        self.index = PrefixIndex()
        self.accuracy = Accuracy(self.index.holds, **settings)
        self.index.listen(self.accuracy.removed)
        self.prompt = Prompt([n for n in range(BLOCKS) for _ in range(SIZE)] + [99])
        self.now = 0.0
        self.source = Source()
        self.changes: list[Change] = []

    def store(self, *hashes: int) -> None:
        for n in hashes:
            self.index.store(E, 0, BlockStored([n], n - 1 or None, [n - 1] * SIZE, SIZE, medium="GPU"))

    def remove(self, *hashes: int) -> None:
        for n in hashes:
            self.index.remove(E, 0, BlockRemoved([n], "GPU"))

    def leg(self, index: str = "exact", said: int | None = None) -> Comparison:
        if said is None:
            said = sum(self.index.match(self.prompt).values())
        keys = self.index.hasher.of_prompt(self.prompt, SIZE)
        return self.accuracy.begin(E, 0, index=index, predicted_tokens=said, block_size=SIZE, keys=keys)

    def answer(self, leg: Comparison, blocks: int | None, **how: Any) -> None:
        """The engine answers and its events arrive: it stores what it did not find."""
        leg.answered(None if blocks is None else blocks * SIZE, self.now, **how)
        leg.drop()
        self.store(*range((blocks or 0) + 1, BLOCKS + 1))

    def settle(self, seconds: float = SETTLE_S) -> None:
        self.now += seconds
        self.changes += self.accuracy.look(self.now, lambda _instance, _rank: self.source)

    @property
    def status(self) -> dict[str, Any]:
        return as_builtins(self.accuracy.status(E, 0))

    @property
    def misses(self) -> dict[str, int]:
        return {cause: count for cause, count in self.status["misses"].items() if count}

    @property
    def remembered(self) -> int:
        return len(self.accuracy._ranks[E, 0].removals)

    def prove_all_is_reused(self) -> None:
        self.store(1)
        self.answer(self.leg(), 1)
        self.remove(*range(1, BLOCKS + 1))


def test_a_prediction_that_was_right() -> None:
    scene = Scene()
    assert scene.status["exact_share"] is None
    scene.answer(scene.leg(), 0)
    scene.answer(scene.leg(), BLOCKS)
    scene.settle()
    shown = scene.status
    assert (shown["legs"], shown["exact"], shown["exact_share"], shown["mean_error_blocks"]) == (2, 2, 1, 0)
    assert scene.misses == {}


def test_tokens_beside_whole_blocks_do_not_count() -> None:
    scene = Scene()
    scene.store(1, 2)
    scene.leg().answered(2 * SIZE + 3, scene.now)
    assert scene.status["exact"] == 1


def test_an_eviction_between_decision_and_arrival_is_a_race() -> None:
    scene = Scene()
    scene.prove_all_is_reused()
    scene.store(1, 2, 3, 4)
    leg = scene.leg()
    scene.remove(4, 3)
    scene.answer(leg, 2)
    assert scene.misses == {}  # not judged yet
    scene.settle()
    assert scene.misses == {"race": 1}
    assert (scene.status["over"], scene.status["mean_error_blocks"]) == (1, 1.0)


def test_an_eviction_while_a_decision_waits_for_its_turn_is_one_too() -> None:
    scene = Scene()
    scene.prove_all_is_reused()
    scene.store(1, 2, 3, 4)
    said = sum(scene.index.match(scene.prompt).values())
    scene.remove(4, 3)
    scene.answer(scene.leg(said=said), 2)
    scene.settle()
    assert scene.misses == {"race": 1}


def test_an_eviction_whose_event_comes_after_the_answer_is_one_too() -> None:
    scene = Scene()
    scene.prove_all_is_reused()
    scene.store(1, 2, 3, 4)
    leg = scene.leg()
    leg.answered(2 * SIZE, scene.now)
    leg.drop()
    scene.remove(4, 3)
    scene.store(3, 4, 5, 6)
    scene.settle()
    assert scene.misses == {"race": 1}


def test_an_eviction_before_the_decision_explains_nothing() -> None:
    scene = Scene()
    scene.prove_all_is_reused()
    scene.store(1, 2, 3, 4)
    scene.store(3)
    other = scene.leg()
    scene.remove(3)
    scene.answer(scene.leg(), 2)
    scene.settle()
    other.drop()
    assert scene.misses == {"index": 1}


def test_one_of_two_copies_removed_explains_nothing() -> None:
    scene = Scene()
    scene.prove_all_is_reused()
    scene.store(1, 2, 3, 3)
    leg = scene.leg()
    scene.remove(3)
    scene.answer(leg, 1)
    scene.settle()
    assert scene.misses == {"index": 1}


@pytest.mark.parametrize("how", ["cleared", "retired"])
def test_a_cache_that_was_emptied_meanwhile_is_a_race(how: str) -> None:
    scene = Scene()
    scene.store(1, 2, 3)
    leg = scene.leg()
    if how == "cleared":
        scene.index.clear(E, 0)
    else:
        scene.index.retire(E, 0)
    scene.answer(leg, 0)
    scene.settle()
    assert scene.misses == {"race": 1}


def test_blocks_that_another_leg_stored_meanwhile_are_a_race() -> None:
    scene = Scene()
    first, second = scene.leg(), scene.leg()
    scene.answer(first, 0)
    scene.answer(second, BLOCKS)
    scene.settle()
    assert scene.misses == {"race": 1}
    assert (scene.status["under"], scene.status["mean_error_blocks"]) == (1, BLOCKS / 2)


def test_blocks_stored_before_their_size_was_known_are_a_race() -> None:
    scene = Scene()
    guessed, keys_of = 2 * SIZE, scene.index.hasher.of_prompt

    def learned() -> tuple[int, Any]:
        size = scene.index.block_size(E, 0) or guessed
        return size, keys_of(scene.prompt, size)

    leg = scene.accuracy.begin(
        E, 0, index="exact", predicted_tokens=0, block_size=guessed, keys=learned()[1], learned=learned
    )
    scene.store(1, 2, 3, 4, 5)
    leg.answered(5 * SIZE, scene.now)
    leg.drop()
    scene.settle()
    assert scene.misses == {"race": 1}


def test_blocks_that_came_and_went_again_are_a_race() -> None:
    scene = Scene()
    leg = scene.leg()
    scene.store(1, 2, 3)
    leg.answered(3 * SIZE, scene.now)
    leg.drop()
    scene.remove(3, 2, 1)
    scene.settle()
    assert scene.misses == {"race": 1}


def test_what_nobody_announced_the_index_had_missed() -> None:
    scene = Scene()
    leg = scene.leg()
    leg.answered(3 * SIZE, scene.now)
    scene.store(4, 5, 6)  # their parent never came
    scene.settle()
    assert scene.misses == {"index": 1}
    for _ in range(20):
        scene.answer(scene.leg(), BLOCKS)
        scene.settle()
    assert scene.status["trusted"]  # too little is never held against it


def test_prompts_tokenized_otherwise_say_nothing_of_the_index() -> None:
    scene = Scene()
    scene.prove_all_is_reused()
    scene.store(*range(1, BLOCKS + 1))
    for _ in range(20):
        scene.leg().answered(0, scene.now, tokens_differ=True)
    scene.settle()
    assert scene.misses == {"tokens": 20}
    assert scene.status["trusted"]
    assert scene.changes == []


def test_engines_that_do_not_report_are_not_wrong() -> None:
    scene = Scene()
    scene.store(1, 2)
    scene.answer(scene.leg(), None)
    shown = scene.status
    assert (shown["legs"], shown["unreported"], shown["exact_share"]) == (1, 1, None)


@pytest.mark.parametrize(("reported", "outcome"), [(-5, "unreported"), (10**30, "under")])
def test_nonsense_does_no_harm(reported: int, outcome: str) -> None:
    scene = Scene()
    scene.store(1, 2)
    scene.leg().answered(reported, scene.now)
    scene.settle()
    assert scene.status[outcome] == 1
    assert (scene.status["mean_error_blocks"] or 0) <= BLOCKS + 1
    assert scene.status["trusted"]


def test_what_is_only_the_most_an_engine_may_reuse_is_told_apart() -> None:
    scene = Scene(upper_bound=lambda instance, rank: (instance, rank) == (E, 0))
    scene.prove_all_is_reused()
    scene.store(1, 2, 3, 4)
    for _ in range(20):
        scene.leg().answered(SIZE, scene.now)
    scene.settle()
    assert scene.misses == {"upper_bound": 20}
    assert scene.status["trusted"]


def test_an_engine_that_always_computes_its_last_block_again_is_not_wrong() -> None:
    scene = Scene()
    scene.store(1, 2, 3, 4)
    for _ in range(20):
        scene.leg().answered(3 * SIZE, scene.now)
    scene.settle()
    assert scene.misses == {"upper_bound": 20}
    scene.leg().answered(4 * SIZE, scene.now)  # it can do without
    scene.leg().answered(3 * SIZE, scene.now)
    scene.settle()
    assert scene.misses == {"upper_bound": 20, "index": 1}


def test_legs_on_a_partial_or_unknown_index_stand_apart() -> None:
    scene = Scene()
    scene.leg("unknown").answered(2 * SIZE, scene.now)
    scene.leg("partial").answered(SIZE, scene.now)
    scene.settle()
    shown = scene.status
    assert shown["legs"] == 0
    assert "misses" not in shown["not_exact"]
    assert (shown["not_exact"]["legs"], shown["not_exact"]["under"]) == (2, 2)


def test_a_partial_index_must_not_promise_too_much_either() -> None:
    scene = Scene()
    scene.store(*range(1, BLOCKS + 1))
    for _ in range(MISSES_TO_DISTRUST):
        scene.leg("partial").answered(0, scene.now)
    scene.settle()
    assert not scene.status["trusted"]
    assert scene.misses == {}


def test_misses_wait_while_the_source_is_in_doubt() -> None:
    scene = Scene()
    scene.store(1, 2, 3)
    leg = scene.leg()
    leg.answered(SIZE, scene.now)
    leg.drop()
    scene.source = Source("unknown")
    scene.settle(SETTLE_S)
    scene.settle(IN_DOUBT_S - 1)
    assert scene.misses == {}
    scene.remove(2)  # the replay brings what was lost on the way
    scene.source = Source("exact")
    scene.settle(0)
    assert scene.misses == {"race": 1}


def test_misses_that_persist_end_the_trust_and_have_the_rank_rebuilt() -> None:
    scene = Scene()
    scene.store(*range(1, BLOCKS + 1))
    scene.settle(0)
    for _ in range(MISSES_TO_DISTRUST):
        assert scene.accuracy.trusted(E, 0)
        scene.leg().answered(2 * SIZE, scene.now)
    scene.settle()
    assert scene.changes == [
        Change(E, 0, Step.LOST, BLOCKS, 2, 0.0),
        Change(E, 0, Step.REPLAY, BLOCKS, 2, REBUILD_FIRST_S),
    ]
    assert not scene.accuracy.trusted(E, 0)
    scene.source = Source("exact", 1)
    scene.settle()
    assert scene.changes[2:] == [Change(E, 0, Step.REGAINED, BLOCKS, 2, None)]
    assert scene.accuracy.trusted(E, 0)


def test_a_removed_instance_is_forgotten_with_its_legs() -> None:
    scene = Scene()
    scene.store(1, 2)
    leg = scene.leg()
    scene.accuracy.forget(E)
    leg.answered(0, scene.now)
    leg.drop()
    scene.settle()
    assert scene.status["legs"] == 0
    assert scene.accuracy.trusted(E, 0)


def test_removals_are_remembered_only_while_a_leg_may_ask() -> None:
    scene = Scene()
    scene.prove_all_is_reused()
    scene.store(1, 2, 3)
    scene.remove(3)
    assert scene.remembered == 0
    first = scene.leg()
    scene.remove(2)
    second = scene.leg()
    scene.store(2)
    scene.remove(2, 1)
    assert scene.remembered == 2
    first.drop()
    assert scene.remembered == 2
    second.drop()
    second.drop()
    assert scene.remembered == 0


# ---- against a plain model ---------------------------------------------------------------------------------

PROMPTS = ((1, 2, 3, 4), (1, 2, 5, 6), (1, 7))
"""Blocks; each is known by what stands before it as well."""


class World:
    """An engine that evicts as it likes, a wire that takes its time, and legs that overtake each other."""

    def __init__(self, *, lies: bool) -> None:
        self.lies = lies
        self.index = PrefixIndex()
        self.accuracy = Accuracy(self.index.holds)
        self.index.listen(self.accuracy.removed)
        self.now = 0.0
        self.cached: dict[int, int] = {}  # engine hash -> copies
        self.wire: list[BlockStored | BlockRemoved] = []
        self.deciding: list[tuple[int, Comparison]] = []
        self.served: list[tuple[Comparison, int]] = []
        self.compared: list[tuple[int, int]] = []

    def hashes(self, which: int) -> list[int]:
        blocks = PROMPTS[which]
        return [int("".join(map(str, blocks[: n + 1]))) for n in range(len(blocks))]

    def decide(self, which: int) -> None:
        prompt = Prompt([block for block in PROMPTS[which] for _ in range(SIZE)] + [99])
        said = sum(self.index.match(prompt).values())
        keys = self.index.hasher.of_prompt(prompt, SIZE)
        leg = self.accuracy.begin(E, 0, index="exact", predicted_tokens=said, block_size=SIZE, keys=keys)
        self.deciding.append((which, leg))

    def serve(self, at: int) -> None:
        if not self.deciding:
            return
        which, leg = self.deciding.pop(at % len(self.deciding))
        hashes = self.hashes(which)
        found = 0
        while found < len(hashes) and self.cached.get(hashes[found]):
            found += 1
        for engine_hash in hashes[found:]:
            self.cached[engine_hash] = self.cached.get(engine_hash, 0) + 1
        if found < len(hashes):
            tokens = [block for block in PROMPTS[which][found:] for _ in range(SIZE)]
            parent = hashes[found - 1] if found else None
            run: list[int | bytes] = list(hashes[found:])
            self.wire.append(BlockStored(run, parent, tokens, SIZE, medium="GPU"))
        self.served.append((leg, found))

    def answer(self, at: int) -> None:
        if self.served:
            leg, found = self.served.pop(at % len(self.served))
            self.compared.append((leg.predicted, found))
            leg.answered(found * SIZE, self.now)
            leg.drop()

    def evict(self, at: int) -> None:
        present = [engine_hash for engine_hash, copies in self.cached.items() if copies]
        if present:
            gone = present[at % len(present)]
            self.cached[gone] -= 1
            if not self.lies:
                self.wire.append(BlockRemoved([gone], "GPU"))

    def deliver(self, count: int) -> None:
        now, self.wire = self.wire[:count], self.wire[count:]
        for event in now:
            if isinstance(event, BlockStored):
                self.index.store(E, 0, event)
            else:
                self.index.remove(E, 0, event)

    def settle(self) -> None:
        self.deliver(len(self.wire))
        self.now += SETTLE_S
        self.accuracy.look(self.now, lambda _instance, _rank: Source())

    def run(self, script: list[tuple[str, int]]) -> dict[str, Any]:
        for verb, at in script:
            match verb:
                case "decide":
                    self.decide(at % len(PROMPTS))
                case "serve":
                    self.serve(at)
                case "answer":
                    self.answer(at)
                case "evict":
                    self.evict(at)
                case "deliver":
                    self.deliver(1 + at % 2)
                case _:
                    self.settle()
        while self.deciding or self.served:
            self.serve(0)
            self.answer(0)
        self.settle()
        return as_builtins(self.accuracy.status(E, 0))


steps = st.lists(
    st.tuples(
        st.sampled_from(["decide", "decide", "serve", "serve", "answer", "evict", "deliver", "settle"]),
        st.integers(0, 11),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_every_miss_of_an_honest_engine_is_a_race(script: list[tuple[str, int]]) -> None:
    world = World(lies=False)
    shown = world.run(script)
    missed = sum(said != found for said, found in world.compared)
    assert shown["legs"] == len(world.compared)
    assert shown["exact"] == shown["legs"] - missed
    assert shown["misses"] == {"tokens": 0, "race": missed, "upper_bound": 0, "index": 0}
    assert shown["trusted"]
    assert len(world.accuracy._ranks[E, 0].removals) == 0 if world.compared else True


@settings(max_examples=300, deadline=None)
@given(steps)
def test_an_engine_that_hides_its_evictions_is_never_excused_by_a_race(script: list[tuple[str, int]]) -> None:
    world = World(lies=True)
    shown = world.run(script)
    assert shown["over"] == sum(said > found for said, found in world.compared)
    assert shown["misses"]["race"] <= shown["under"]
    assert shown["misses"]["index"] + shown["misses"]["upper_bound"] >= shown["over"]
