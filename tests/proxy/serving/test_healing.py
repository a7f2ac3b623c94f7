"""A router that starts late learns what engines had cached before, and no request suffers for it."""

import json
from typing import Any

import pytest

from kvevents import BlockStored, PrefixIndex, Prompt, Slot
from proxy.config import parse_instance
from proxy.connectors import Handoff, asking_for_report
from proxy.fleet import Fleet, Instance
from proxy.happenings import BlocksLearnt, Happening, ReportAsked
from proxy.phases import Role
from proxy.request.body import Body
from proxy.scheduling.question import Question
from proxy.scheduling.types import Candidate
from proxy.serving.healing import BURST, CONFIRM_S, RESERVE, SHARE, USELESS_AFTER, Healing

ENGINE = "a:1"
BLOCK = 16


# ---- when a leg asks --------------------------------------------------------------------------------------


class Source:
    def __init__(self) -> None:
        self.state = "partial"
        self.epoch = 0


class Scene:
    """One partial rank, and an engine that has whatever a test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = self.learnt = 0
        self.index = PrefixIndex()
        self.fleet = Fleet()
        self.source = Source()
        self.join()
        self.healing = Healing(self.fleet, self.index, self._heard, lambda: self.now)

    def join(self) -> None:
        instance = Instance(parse_instance(ENGINE, Role.PREFILL))
        instance.is_followed({0: self.source})
        self.fleet.add(instance)

    def _heard(self, happening: Happening) -> None:
        match happening:
            case ReportAsked(instance, rank):
                self.asked += 1
            case BlocksLearnt(instance, rank, blocks):
                self.learnt += blocks
            case _:
                raise AssertionError(happening)
        assert (instance, rank) == (ENGINE, 0)

    def store(self, prompt: list[int], blocks: int) -> None:
        hashes: list[int | bytes] = [hash(tuple(prompt[: BLOCK * (n + 1)])) % 2**64 for n in range(blocks)]
        self.index.store(ENGINE, 0, BlockStored(hashes, None, prompt[: blocks * BLOCK], BLOCK, medium="GPU"))

    def leg(self, prompt: list[int] | None, *, reported: int | None = 0, tells: bool = True) -> bool:
        """A prefill leg; whether it asked. `tells`: a report that is asked for tells of the blocks."""
        question = Question("tiny", None if prompt is None else Prompt(prompt), 50)
        match = self.index.match(question.prompt) if question.prompt else {}
        cached = match.get(Slot(ENGINE, 0, "GPU"), 0) if prompt is not None else None
        state = self.source.state
        chosen = Candidate(ENGINE, 0, True, None, cached, cached, None, 0, state)
        asked = self.healing.wants_report(chosen, question)
        if asked and tells and prompt is not None:
            self.store(prompt, (reported or 0) // BLOCK)
        handoff = Handoff(None, None if prompt is None else len(prompt), reported, None)
        self.healing.answered(chosen, question, handoff, asked=asked)
        return asked

    @property
    def told(self) -> tuple[int, int, int, bool]:
        told = self.healing.status(ENGINE, 0)
        assert told is not None
        return told.legs, told.blocks_learnt, told.suspected_prefixes, told.refused


def prompt(seed: int, tokens: int = 65) -> list[int]:
    return [seed, *range(tokens - 1)]


def test_blocks_nobody_told_of_are_learnt_with_the_first_leg_that_meets_them() -> None:
    scene = Scene()
    assert scene.leg(prompt(1), reported=48)
    assert scene.told == (1, 0, 0, False)  # events may still be on their way
    scene.now += CONFIRM_S
    assert scene.told == (1, 3, 0, False)
    assert (scene.asked, scene.learnt) == (1, 3)
    assert scene.leg(prompt(1), reported=48)  # its fourth block is not known
    scene.store(prompt(1), 4)
    assert not scene.leg(prompt(1), reported=64)  # all that can be reused is


@pytest.mark.parametrize("state", ["exact", "unknown"])
def test_nobody_asks_where_nothing_can_be_missing_or_nothing_is_known(state: str) -> None:
    scene = Scene()
    scene.source.state = state
    assert not scene.leg(prompt(1), reported=48)
    assert scene.healing.status(ENGINE, 0) is None


def test_prompts_of_unknown_tokens_and_without_a_whole_block_ask_nothing() -> None:
    scene = Scene()
    assert not scene.leg(None)
    assert not scene.leg(prompt(1, 16))
    assert scene.leg(prompt(1, 17))


def test_the_share_of_legs_that_ask_is_bounded() -> None:
    scene = Scene()
    legs = 3000
    asked = sum(scene.leg(prompt(n)) for n in range(legs))
    assert BURST - RESERVE < asked <= BURST + SHARE * legs
    assert scene.told[0] == asked


def test_where_the_budget_is_short_only_beginnings_the_engine_is_known_to_have_are_asked_about() -> None:
    scene = Scene()
    assert scene.leg(prompt(0))
    scene.healing._ranks[ENGINE, 0].budget = RESERVE / 2
    shared = prompt(901, 33)
    assert not scene.leg([*shared, 1], reported=32)
    assert scene.told[2] == 1
    assert not scene.leg(prompt(902))
    assert scene.leg([*shared, 2, *range(50)], reported=32)
    assert scene.told[2] == 0
    assert not scene.leg([*shared, 3, *range(50)], reported=32)  # it is known now


def test_an_engine_that_ignores_the_question_is_asked_rarely() -> None:
    scene = Scene()
    for n in range(USELESS_AFTER):
        assert scene.leg(prompt(n), reported=48, tells=False)
        scene.now += CONFIRM_S
    legs = 3000
    asked = sum(scene.leg(prompt(n % 5), reported=48, tells=False) for n in range(legs))
    assert asked <= BURST + SHARE * legs / 16
    assert scene.told[1] == 0
    while not scene.leg(prompt(1), reported=48):
        scene.now += CONFIRM_S
    scene.now += CONFIRM_S
    assert scene.told[1] == 3  # it has learnt to


def test_an_engine_that_refuses_is_asked_no_more_until_it_is_another_process() -> None:
    scene = Scene()
    assert scene.leg(prompt(1))
    scene.healing.refused(Candidate(ENGINE, 0, True, None, 0, 0, None, 0, "partial"))
    assert not scene.leg(prompt(2))
    assert scene.told == (1, 0, 0, True)
    scene.source.epoch += 1
    assert scene.leg(prompt(2))
    assert scene.told == (1, 0, 0, False)


def test_what_was_kept_of_an_instance_goes_with_it() -> None:
    scene = Scene()
    assert scene.leg(prompt(1), reported=48)
    scene.fleet.remove(ENGINE)
    assert scene.healing.status(ENGINE, 0) is None
    assert not scene.leg(prompt(1), reported=48)
    scene.join()
    assert scene.leg(prompt(2))
    assert scene.told == (1, 0, 0, False)


def test_an_engine_that_reports_nothing_or_counts_otherwise_teaches_nothing() -> None:
    scene = Scene()
    assert scene.leg(prompt(0))
    scene.healing._ranks[ENGINE, 0].budget = RESERVE / 2
    assert not scene.leg(prompt(901), reported=None)
    question = Question("tiny", Prompt(prompt(902)), 50)
    chosen = Candidate(ENGINE, 0, True, None, 0, 0, None, 0, "partial")
    scene.healing.answered(chosen, question, Handoff(None, 64, 48, None), asked=False)
    assert scene.told[2] == 0


# ---- how a leg asks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, {}),
        ({"vllm_xargs": None}, {}),
        ({"vllm_xargs": {}}, {}),
        ({"vllm_xargs": {"mine": 1.50}, "session_id": None}, {"mine": 1.50}),
        ({"session_id": "s"}, None),
        ({"vllm_xargs": {"session_id": "s"}}, None),
        ({"vllm_xargs": "odd"}, None),
    ],
)
def test_the_question_is_added_to_what_the_client_says_or_not_asked(
    members: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    asking = asking_for_report(Body.parse(json.dumps({"prompt": "hi", **members}).encode()))
    if expected is None:
        assert asking is None
    else:
        assert asking is not None
        report = {"kv_cache_report_mode": "full", "session_id": "kvproxy-cache-report"}
        assert json.loads(asking.encoded()) == {"prompt": "hi"} | members | {"vllm_xargs": expected | report}
