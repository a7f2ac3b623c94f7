"""What an attempt has taken, by transcripts: what happened, in order, and what is still held then."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvevents import PrefixIndex, Prompt
from proxy.admission import Admitted
from proxy.caches.accuracy import Accuracy
from proxy.config import parse_instance
from proxy.connectors import NixlConnector
from proxy.connectors.plans import InTurn
from proxy.errors import LegError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.phases import Phase, Role
from proxy.scheduling.placement import Expectation, Placement
from proxy.scheduling.policies import RoundRobin
from proxy.scheduling.question import Question
from proxy.serving.legs.leg import AttemptFailedError, Legs
from proxy.serving.placed import Placed

PLAN = InTurn(NixlConnector(), leased=True)

QUESTION = Question("tiny", Prompt(range(64)), 64)


class Scene:
    """One attempt that was let in: it prefills on `p:1` and decodes on one of three, or one engine does
    both.
    """

    def __init__(self, *, one_leg: bool = False) -> None:
        self.fleet, self.accuracy = Fleet(), Accuracy(lambda *_: True)
        for address in ("b:1",) if one_leg else ("p:1", "d0:1", "d1:1", "d2:1"):
            role = {"b": Role.BOTH, "p": Role.PREFILL, "d": Role.DECODE}[address[0]]
            instance = Instance(parse_instance(address, role))
            instance.listed([ModelCard("tiny")], 0.0)
            instance.came_up()
            self.fleet.add(instance)
        policy = RoundRobin()
        self.placement = Placement(
            self.fleet, PrefixIndex(), policy, "round_robin", clock=lambda: 0.0, accuracy=self.accuracy
        )
        self.settled: list[bool] = []
        self.placed = Placed(self.admitted(), self.placement, PLAN, kind="text", lease_s=30.0)
        self.reply = ExitStack()

    def admitted(self) -> Admitted:
        """What the gate returns."""
        decision = self.placement.decide(QUESTION)
        prefill, decode = decision.prefill.chosen, decision.decode.chosen
        assert prefill is not None
        assert decode is not None
        return Admitted(
            QUESTION,
            decision,
            decode=self.placement.claim(decode, Phase.DECODE, QUESTION, computes=decision.one_leg),
            prefill=None if decision.one_leg else self.placement.claim(prefill, Phase.PREFILL, QUESTION),
            expected=Expectation(self.settled.append),
        )

    def move(self) -> None:
        """The decode engine could not be connected to."""
        self.placed.tried.append(self.placed.decode.instance)
        better = self.placement.decide_decode(
            QUESTION, self.placed.decision, failed=(), tried=self.placed.tried
        )
        if better.decode.chosen is not None:
            self.placed.moves_to(better)

    def stream(self) -> None:
        """The decode engine has begun to stream: a reply holds from now on what its leg has taken."""
        self.reply.callback(self.placed.decode_leg.passed_on().close)

    def legs(self, phase: Phase) -> Counter[str]:
        """The legs that count, by instance."""
        return +Counter({each.address: each.running_legs(phase) for each in self.fleet})

    @property
    def work_tokens(self) -> int:
        """What is still to be computed, as the instances count it."""
        return sum(each.running_prefill_tokens() for each in self.fleet)

    def held(self) -> str:
        """Decode legs, prefill legs, whether blocks are expected, whether a comparison is under way."""
        comparison = self.placed.comparison
        if comparison is not None:
            self.accuracy.removed(self.placed.prefill.instance, 0, None)  # told of while it is under way
        words = ["D"] * self.legs(Phase.DECODE).total() + ["P"] * self.legs(Phase.PREFILL).total()
        words += ["blocks"] * (not self.settled)
        words += ["compares"] * (comparison is not None and comparison.was_removed(0))
        return " ".join(words) or "nothing"


EVENTS: dict[str, Callable[[Scene], None]] = {
    "compare": lambda scene: scene.placed.compares(),
    "apart": lambda scene: scene.placed.runs_apart(),
    "came": lambda scene: scene.placed.computed(came=True),
    "failed": lambda scene: scene.placed.computed(came=False),
    "prefill-over": lambda scene: scene.placed.prefill_over(),
    "move": Scene.move,
    "stream": Scene.stream,
    "close": lambda scene: scene.placed.close(),
    "reply-closed": lambda scene: scene.reply.close(),
}

TRANSCRIPTS = """
it was let in                             |                                                        | D P blocks
... and its client has left               | close                                                  | nothing
the prefill leg is about to be sent       | compare                                                | D P blocks compares
... and something breaks                  | compare close                                          | nothing
the prefill leg runs                      | compare apart                                          | D P blocks compares
client leaves during prefill              | compare apart close                                    | P blocks compares
... which then answers                    | compare apart close came                               | compares
... and is over                           | compare apart close came prefill-over                  | nothing
... which is then cut                     | compare apart close failed prefill-over                | nothing
... whose task is ended before it began   | compare apart close prefill-over                       | nothing
prefill answers                           | compare apart came                                     | D compares
prefill is over                           | compare apart came prefill-over                        | D
prefill fails                             | compare apart failed prefill-over                      | D
... which ends the attempt                | compare apart failed prefill-over close                | nothing
decode cannot be connected to             | compare apart came prefill-over move                   | D
... nor the next one                      | compare apart came prefill-over move move              | D
... nor any                               | compare apart came prefill-over move move move         | D
... which ends the attempt                | compare apart came prefill-over move move move close   | nothing
decode fails, or its client leaves        | compare apart came prefill-over close                  | nothing
decode streams                            | compare apart came prefill-over stream close           | D
... to its end                            | compare apart came prefill-over stream close reply-closed | nothing
... elsewhere                             | compare apart came prefill-over move stream close      | D
... to its end                            | compare apart came prefill-over move stream close reply-closed | nothing
closed twice                              | compare apart came prefill-over close close prefill-over | nothing
"""
ONE_LEG = """
it was let in                             |                                      | D blocks
... and its client has left               | close                                | nothing
it is about to be sent                    | compare                              | D blocks compares
it fails, or its client leaves            | compare failed close                 | nothing
it is answered                            | compare came close                   | nothing
it streams                                | compare stream came close            | D
... to its end                            | compare stream came close reply-closed | nothing
what cannot be split streams              | stream came close                    | D
closed twice                              | compare came close close             | nothing
"""


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("|")] for row in table.strip().splitlines()]


@pytest.mark.parametrize(
    ("one_leg", "transcript", "held"),
    [pytest.param(False, *row[1:], id=row[0]) for row in rows(TRANSCRIPTS)]
    + [pytest.param(True, *row[1:], id=f"one leg: {row[0]}") for row in rows(ONE_LEG)],
)
def test_transcripts(one_leg: bool, transcript: str, held: str) -> None:
    scene = Scene(one_leg=one_leg)
    for event in transcript.split():
        EVENTS[event](scene)
    assert scene.held() == held
    computing = "blocks" in held and "D" in held if one_leg else "P" in held
    assert scene.work_tokens == 64 * computing, "a stream is no work of prefill"
    if (
        told := [event for event in transcript.split() if event in {"came", "failed"}]
    ) or "blocks" not in held:
        assert scene.settled == [told[:1] == ["came"]], "once, and as the leg said"


def test_each_decode_instance_counts_the_leg_while_it_goes_there() -> None:
    scene = Scene()
    seen = []
    for _ in range(3):
        seen.append(scene.legs(Phase.DECODE))
        assert seen[-1] == {scene.placed.decode.instance: 1}
        EVENTS["move"](scene)
    assert len({next(iter(where)) for where in seen}) == 3
    assert scene.placed.decision.decode.chosen is scene.placed.decode


@given(
    st.booleans(),
    st.lists(st.sampled_from([*set(EVENTS) - {"compare", "apart"}]), max_size=12),
    st.sampled_from(["", "compare", "compare apart"]),
)
def test_in_any_order_of_events_each_part_is_held_by_its_owner_and_ends_once(
    one_leg: bool, events: list[str], begun: str
) -> None:
    """Against a plain model: who owns the decode claim, and which parts of the prompt's leg are open."""
    scene = Scene(one_leg=one_leg)
    decode: str | None = "attempt"
    computing, comparing, apart = True, "compare" in begun, "apart" in begun
    for event in [*begun.split(), *events]:
        EVENTS[event](scene)
        match event:
            case "came" | "failed":
                computing = False
            case "prefill-over":
                computing = comparing = apart = False
            case "stream" if decode == "attempt":
                decode = "reply"
            case "close":
                decode = None if decode == "attempt" else decode
                if not apart:
                    computing = comparing = False
            case "reply-closed":
                decode = None if decode == "reply" else decode
            case "move":
                pass
        assert scene.legs(Phase.PREFILL).total() == (computing and not one_leg)
        assert (not scene.settled) is computing
        if one_leg and "move" not in events:
            assert scene.work_tokens == 64 * (computing and decode is not None)
        elif not one_leg:
            assert scene.work_tokens == 64 * computing
        assert ("compares" in scene.held()) is comparing
        if "move" not in events:
            assert scene.legs(Phase.DECODE).total() == (decode is not None)
    for event in ("close", "prefill-over", "reply-closed"):
        EVENTS[event](scene)
    assert scene.held() == "nothing"
    assert scene.work_tokens == 0
    assert len(scene.settled) == 1


def test_two_legs_have_a_hold_and_one_has_none() -> None:
    assert Scene().placed.hold.instance == "p:1"
    one = Scene(one_leg=True).placed
    assert one.one_leg
    with pytest.raises(RuntimeError, match="nothing is handed over"):
        _ = one.hold


@pytest.mark.parametrize("gone", ["p:1", "d"])
@pytest.mark.parametrize("back", [False, True], ids=["gone", "another is there"])
def test_an_instance_removed_before_its_request_woke_gets_no_leg(gone: str, back: bool) -> None:
    scene = Scene()
    address = gone if gone == "p:1" else scene.placed.decode.instance
    old = scene.fleet.get(address)
    assert old is not None
    nobody: Any = None  # nothing is sent here
    legs = Legs(scene.fleet, nobody, nobody, lambda: 0.0)
    legs.check_there(scene.placed)
    scene.fleet.remove(address)
    if back:
        scene.fleet.add(Instance(old.spec))
    with pytest.raises(AttemptFailedError) as failed, closing(scene.placed):
        legs.check_there(scene.placed)
    assert (failed.value.instance, failed.value.phase) == (
        address,
        Phase.PREFILL if gone == "p:1" else Phase.DECODE,
    )
    assert isinstance(failed.value.cause, LegError)
    assert old.running_legs() == 0
    assert scene.held() == "nothing"
