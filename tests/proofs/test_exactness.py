"""The proof of exactness: its judge knows a race from an index that is wrong, and its short form finds
neither."""

import itertools
import pathlib
from collections import Counter
from typing import Any

import pytest

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch
from scripts.workshop.engines.engine import EngineSpec
from tests.kvevents.bench import block, until
from tests.kvevents.publisher import Publisher, free_port
from tests.proofs.exactness import verdict as v
from tests.proofs.exactness.course import LATE, Options, Phase
from tests.proofs.exactness.history import Asked, CacheHistory
from tests.proofs.exactness.legs import Leg
from tests.proofs.exactness.looking import Look, grown
from tests.proofs.exactness.prompts import ADAPTER, MIXED, Kind, Plan, Prompts
from tests.proofs.exactness.report import write_findings
from tests.proofs.exactness.run import run
from tests.proofs.exactness.witness import Witness

BLOCK = 4
PROMPT = list(range(13))  # three full blocks and a token


def stored(*hashes: int, parent: int | None = None, first: int = 0, **fields: Any) -> BlockStored:
    """Blocks of PROMPT from the `first` on."""
    tokens = PROMPT[BLOCK * first : BLOCK * (first + len(hashes))]
    return BlockStored(list(hashes), parent, tokens, BLOCK, **fields)


class Telling:
    """A history that is told one event at a time."""

    def __init__(self) -> None:
        self.history = CacheHistory()
        self.number = 0

    def at(self, moment: float, *events: Event) -> "Telling":
        self.history.add(self.number, EventBatch(moment, list(events)))
        self.number += 1
        return self

    def lengths(self, begin: float, end: float, **fields: Any) -> set[int]:
        return self.history.lengths(Asked(PROMPT, **fields), begin, end)


def test_a_history_tells_what_was_cached_at_each_moment() -> None:
    told = Telling().at(1, stored(11, 12, 13)).at(2, BlockRemoved([13])).at(3, BlockRemoved([12]))
    told.at(4, AllBlocksCleared()).at(5, stored(21, 22))
    assert told.lengths(0, 0.5) == {0}
    assert told.lengths(1.5, 1.9) == {12}
    assert told.lengths(1.5, 2.5) == {12, 8}
    assert told.lengths(2.5, 4.5) == {8, 4, 0}
    assert told.lengths(6, 7) == {8}
    assert told.history.cached_blocks == 2
    assert told.history.lengths(Asked(PROMPT[:12]), 1.5, 1.9) == {8}, "the last token is always computed"
    assert told.history.lengths(Asked([0, *PROMPT]), 0, 9) == {0}
    assert (told.history.removed, told.history.cleared, told.history.lost) == (2, 1, [])


async def test_a_witness_asks_for_what_it_was_too_late_for() -> None:
    spec = EngineSpec("prefill-0", 1, events_port=free_port(), replay_port=free_port())
    endpoints = [f"tcp://127.0.0.1:{port}" for port in (spec.events_port, spec.replay_port)]
    publisher = Publisher(*endpoints, lose=lambda number: number in {0, 1, 3})
    numbers = itertools.count(1)

    def heard() -> bool:
        publisher.publish(block(next(numbers)))
        return witness[spec.address].published > 5

    try:
        with Witness([spec]) as witness:
            await until(heard)
    finally:
        publisher.close()
    assert witness[spec.address].cached_blocks == witness[spec.address].published
    assert witness[spec.address].lost == []
    assert witness.error is None


def test_a_block_in_the_middle_ends_what_can_be_reused() -> None:
    told = Telling().at(1, stored(11, 12, 13)).at(2, BlockRemoved([12]))
    assert told.lengths(3, 4) == {4}
    told.at(5, stored(12, parent=11, first=1))
    assert told.lengths(6, 7) == {12}


def test_adapters_and_salts_have_blocks_of_their_own() -> None:
    told = Telling().at(1, stored(11, 12, 13, extra_keys=[["alpha", "mine"], ["alpha"], ["alpha"]]))
    told.at(2, stored(21, 22, lora_name="beta")).at(3, stored(31))
    assert told.lengths(4, 5, adapter="alpha", salt="mine") == {12}
    assert told.lengths(4, 5, adapter="alpha") == {0}
    assert told.lengths(4, 5, adapter="beta") == {8}
    assert told.lengths(4, 5) == {4}


def test_a_second_copy_may_be_one_and_may_be_a_report() -> None:
    told = Telling().at(1, stored(11)).at(2, stored(11)).at(3, BlockRemoved([11]))
    assert told.lengths(2.5, 2.9) == {4}
    assert told.lengths(4, 5) == {0, 4}
    told.at(6, BlockRemoved([11]))
    assert told.lengths(7, 8) == {0}


def test_what_a_history_was_not_told_is_known_to_be_missing() -> None:
    told = Telling().at(1, stored(11))
    told.number = 3
    told.at(2, stored(12, parent=11, first=1)).at(3, stored(99, parent=98))
    assert told.history.lost == [2, 3]
    told.history.new_process(4)
    told.number = 0
    told.at(5, stored(12, parent=11, first=1))
    assert told.history.lost == [2, 3]
    assert told.lengths(4.5, 9) == {0}, "its parent went with the process"
    assert told.history.told(Asked(PROMPT), 3.5, 6) == [
        "2.000 s before its end: everything cleared",
        "1.000 s before its end: blocks [1] stored",
    ]


def leg(**seen: Any) -> Leg:
    """One that was predicted right, from an exact slot."""
    plan = Plan(Kind.SHARED, "/v1/completions", {"model": "tiny"})
    usual: dict[str, Any] = {
        "phase": Phase.MIXED,
        "begun": 11.0,
        "ended": 12.0,
        "status": 200,
        "prefill": "p",
    }
    usual |= {"predicted": 8, "reported": 8, "index": "exact"}
    return Leg(id="first-0", router="first", plan=plan, **(usual | seen))


@pytest.mark.parametrize(
    ("predicted", "reported", "cause"),
    [
        (8, 4, "race"),
        (4, 12, "race"),
        (8, 12, "race"),
        (12, 4, "index"),
        (4, 8, "index"),
        (8, 0, "index"),
        (0, 8, "index"),
    ],
)
def test_a_race_is_what_the_engine_itself_was_in_meanwhile(predicted: int, reported: int, cause: str) -> None:
    told = Telling().at(1, stored(11, 12, 13)).at(2, BlockRemoved([13])).at(11.5, BlockRemoved([12]))
    told.at(11.7, stored(12, parent=11, first=1), stored(13, parent=12, first=2)).at(13, AllBlocksCleared())
    if reported == 8:
        told = Telling().at(1, stored(11, 12))
    miss = v.explain(leg(predicted=predicted, reported=reported), Asked(PROMPT), told.history)
    assert miss.cause == cause, miss.told


def test_what_a_leg_stores_itself_explains_nothing() -> None:
    told = (
        Telling().at(1, stored(11, 12, 13)).at(10.4, BlockRemoved([13, 12, 11])).at(11.5, stored(11, 12, 13))
    )
    miss = v.explain(leg(predicted=12, reported=0), Asked(PROMPT), told.history)
    assert miss.cause == "index", "it was removed long before"
    grew = ", ".join(f"{length} (0.500 s before its end)" for length in (4, 8, 12))
    assert miss.told == (
        f"cached: 0 (1.500 s before its end), {grew}",
        "0.500 s before its end: blocks [0, 1, 2] stored",
    )
    assert v.explain(leg(reported=4), None, told.history).cause == "index"


def test_an_event_on_its_way_is_a_race_for_a_moment() -> None:
    told = Telling().at(1, stored(11, 12, 13)).at(10.8, BlockRemoved([13, 12, 11]))
    assert v.explain(leg(predicted=12, reported=0), Asked(PROMPT), told.history).cause == "race"
    assert v.explain(leg(predicted=0, reported=12), Asked(PROMPT), told.history).cause == "index"
    assert v.explain(leg(predicted=12, reported=8), Asked(PROMPT), told.history).cause == "index", (
        "it was over"
    )


def test_legs_are_judged_from_exact_slots_only() -> None:
    others = [
        leg(reported=0, index="partial"),
        leg(predicted=None),
        leg(status=503),
        leg(reported=0, index="changing"),
    ]
    assert v.check_share([leg()] * 99 + [leg(reported=4)] + others) == []
    assert len(v.check_share([leg()] * 98 + [leg(reported=4)] + others)) == 1
    assert v.check_share(others) == ["no leg came from an exact slot"]
    [row] = v.rows([leg(), leg(reported=4), leg(predicted=0), *others]).values()
    assert row == v.Row(legs=6, exact=3, right=1, over=1, under=1, other=2, unknown=1)
    assert v.check_judged([leg()] * 9 + [leg(index="partial"), leg(status=503)]) == []
    assert len(v.check_judged([leg()] * 9 + [leg(index="unknown")] * 2)) == 1


def test_the_meter_must_agree_and_explain_each_miss_as_a_race() -> None:
    def findings(**counts: int) -> tuple[int, int]:
        meters = {"first": {"p": Counter({name.replace("_", " "): count for name, count in counts.items()})}}
        return len(v.check_meter_share(meters)), len(v.check_meter(meters))

    assert findings(legs=100, exact=99, over=1, miss_race=1) == (0, 0)
    assert findings(legs=200, exact=99, over=1, miss_race=1, unreported=100) == (0, 0)
    assert findings(legs=100, exact=98, over=1, under=1, miss_race=2) == (1, 0)
    assert findings(legs=100, exact=99, over=1, miss_index=1) == (0, 1)
    assert findings(legs=100, exact=99, over=1) == (0, 1), "nobody says why"
    assert v.check_meter({"first": {"p": Counter(legs=100, exact=99, over=1)}}, untold=1) == []
    assert findings() == findings(legs=1, unreported=1) == (1, 0)


def test_a_late_joiner_is_judged_by_its_last_requests() -> None:
    wrong, right = leg(predicted=0), leg()
    assert v.check_late([wrong] * 100 + [right] * v.LATE_WINDOW, 200) == []
    assert v.check_late([wrong] * 200 + [right] * v.LATE_WINDOW, 200) != []
    assert v.check_late([right] * v.LATE_WINDOW + [wrong] * v.LATE_WINDOW, 200) != []
    assert len(v.check_late([right] * (v.LATE_WINDOW - 1), 200)) == 1
    assert v.check_late([leg(predicted=None)] * 100, 200) != []


def test_at_rest_nothing_may_differ() -> None:
    def found(counted: dict[str, int], **seen: Any) -> int:
        return len(v.check_quiet([v.QuietLeg(leg(**seen), counted)]))

    assert found({"p": 8, "other": 0}) == 0
    assert found({"p": 4}) == found({"p": 8, "other": 4}) == found({"p": 8}, predicted=4) == 1
    assert found({"p": 4}, reported=4) == found({"p": 8}, status=500) == 1
    assert found({"p": 8}, index="partial") == 1, "nothing was judged"


def test_what_is_explained_must_be_what_is_cached() -> None:
    def told(cached_tokens: int | None, *lengths: int, index: str = "exact") -> v.Told:
        return v.Told("first", "chat", "p", index, cached_tokens, frozenset(lengths))

    assert v.check_told([told(8, 8), told(0, 0), told(4, 4, 8), told(0, 8, index="partial")]) == []
    assert len(v.check_told([told(8, 8), told(0, 8), told(8, 0), told(None, 8)])) == 3
    assert len(v.check_told([told(0, 0), told(8, 8, index="partial")])) == 1, "nothing was judged"


def test_requests_may_fail_only_near_a_kill() -> None:
    legs = [leg(status=None), leg()]
    assert len(v.check_served(legs, [])) == 1
    assert len(v.check_served(legs, [(13.0, 14.0)])) == 1
    assert v.check_served(legs, [(11.5, 20.0)]) == []


def test_the_meter_is_read_from_status() -> None:
    accuracy = {
        "legs": 5,
        "exact": 3,
        "over": 1,
        "under": 0,
        "unreported": 1,
        "misses": {"race": 1, "index": 0},
    }
    ranks = [{"rank": 0, "accuracy": accuracy}, {"rank": 1, "accuracy": accuracy}]
    meter = Look(0, 1, {"p": {"index": "exact", "ranks": ranks}}).meter
    assert meter is not None
    assert meter["p"] == Counter({"legs": 10, "exact": 6, "over": 2, "unreported": 2, "miss race": 2})
    assert grown({"p": Counter(legs=4)}, meter)["p"]["legs"] == 6
    assert Look(0, 1, {"p": {"index": "exact", "ranks": [{"rank": 0}]}}).meter is None


def test_the_same_seed_asks_the_same_and_every_kind() -> None:
    one, same, other = ([Prompts("c0", seed).next(MIXED) for _ in range(1)] for seed in (1, 1, 2))
    assert one == same != other
    prompts = Prompts("c1", 3)
    plans = []
    for _ in range(200):
        plans.append(plan := prompts.next(MIXED))
        prompts.answered(plan, "a word")
    assert {plan.kind for plan in plans} == set(Kind)
    assert 40 < sum(plan.odd for plan in plans) < 120
    assert {plan.adapter for plan in plans} == {None, ADAPTER}
    chats = [plan.body["messages"] for plan in plans if plan.kind is Kind.CHAT]
    assert sum(longer[: len(turn)] == turn for turn, longer in itertools.pairwise(chats)) > 20


@pytest.mark.timeout(300)  # two busy cores run eight processes here
def test_some_seconds_of_everything(tmp_path: pathlib.Path) -> None:
    """Who joins late learns longer than this takes, and in a hurry races are more than one in a hundred."""
    made = run(
        Options(
            seconds=8,
            seed=4,
            logs=tmp_path,
            pause_s=0.05,
            prefill_tokens=6144,
            buffer_steps=30,
            state_interval_s=1,
            resets=2,
            late_requests=v.LATE_WINDOW,
            quiet_requests=12,
        )
    )
    said = write_findings(made).read_text(encoding="utf-8")
    findings = {finding.check for finding in made.verdict.findings}
    assert findings <= {v.SHARE, v.JOINED}, said
    assert {leg.phase for leg in made.legs} == set(map(str, Phase))
    assert sum(leg.router == LATE for leg in made.legs) > v.LATE_WINDOW
    assert sum(leg.judged and leg.right for leg in made.legs) > 100
    odd = [leg for leg in made.legs if leg.plan.odd and leg.served and leg.index == "exact"]
    assert len(odd) > 30
    assert all(leg.judged for leg in odd), "what no engine reads made a prompt unknown"
