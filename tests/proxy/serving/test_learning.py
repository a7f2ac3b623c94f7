"""What an engine's answer teaches, by a table: the prediction, the engine's report, and who is told."""

from collections.abc import Collection
from typing import Any

import pytest

from kvevents import PrefixIndex, Prompt
from proxy.admission import Admitted
from proxy.caches.accuracy import Accuracy
from proxy.config import parse_instance
from proxy.connectors import Handoff, NixlConnector
from proxy.connectors.plans import InTurn
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.happenings import CountsDiffered, Happening
from proxy.phases import Phase, Role
from proxy.request.dialects import COMPLETIONS
from proxy.scheduling.placement import Expectation, Placement
from proxy.scheduling.policies import LeastLoad
from proxy.scheduling.question import Question
from proxy.serving.exchange import Reply
from proxy.serving.learning import MAX_READ_BYTES, Learning
from proxy.serving.placed import Placed
from proxy.shown import as_builtins

PLAN = InTurn(NixlConnector(), leased=True)


class Told:
    """Tokenizer and watch, and who hears what happens, in one: what each of them is told, in order."""

    def __init__(self, distrusted: Collection[str] = ()) -> None:
        self.words: list[str] = []
        self.distrusted = set(distrusted)

    def distrust(self, kind: str) -> None:
        self.distrusted.add(kind)
        self.words.append(f"distrust {kind}")

    def is_distrusted(self, kind: str) -> bool:
        return kind in self.distrusted

    def process_seen(self, instance: Instance, rank: int, engine_id: str) -> None:
        self.words.append(f"{instance.address} rank {rank} is {engine_id}")

    def __call__(self, happening: Happening) -> None:
        assert isinstance(happening, CountsDiffered)
        self.words.append(f"{happening.instance} counts otherwise")


class Followed:
    """An event source whose index is exact."""

    state = "exact"
    epoch = 0


class Scene:
    """One attempt whose engine has nothing cached by the index; `one_leg`: it does both."""

    def __init__(
        self,
        *,
        tokens: int | None = 64,
        prefix_only: bool = False,
        one_leg: bool = False,
        distrusted: Collection[str] = (),
    ) -> None:
        self.fleet, self.accuracy = Fleet(), Accuracy(lambda *_: True)
        for address, role in (
            [("b:1", Role.BOTH)] if one_leg else [("p:1", Role.PREFILL), ("d:1", Role.DECODE)]
        ):
            instance = Instance(parse_instance(address, role))
            instance.listed([ModelCard("tiny")], 0.0)
            instance.came_up()
            instance.is_followed({0: Followed()})
            self.fleet.add(instance)
        self.told = Told(distrusted)
        told: Any = self.told  # the three of them, each with what is asked of it here
        self.learning = Learning(self.fleet, told, told, told, lambda: 0.0)
        placement = Placement(
            self.fleet, PrefixIndex(), LeastLoad(), "least_load", clock=lambda: 0.0, accuracy=self.accuracy
        )
        prompt = None if tokens is None else Prompt(range(tokens))
        question = Question("tiny", prompt, 100, prefix_only=prefix_only)
        decision = placement.decide(question)
        prefill, decode = decision.prefill.chosen, decision.decode.chosen
        assert prefill is not None
        assert decode is not None
        admitted = Admitted(
            question,
            decision,
            decode=placement.claim(decode, Phase.DECODE, question, computes=one_leg),
            prefill=None if one_leg else placement.claim(prefill, Phase.PREFILL, question),
            expected=Expectation(),
        )
        self.placed = Placed(admitted, placement, PLAN, kind="chat", lease_s=30.0)
        self.placed.compares()

    def prefilled(self) -> None:
        """The prefill leg was answered."""
        prompt, predicted, reported = self.learning.prefilled(self.placed)
        address = self.placed.prefill.instance
        self.told.words.append(f"{address} prefilled {prompt}, {predicted} predicted, {reported} reported")

    def compared(self) -> dict[str, Any]:
        """The outcomes that were counted, without the zeros."""
        shown = as_builtins(self.accuracy.status(self.placed.prefill.instance, 0))
        return {word: shown[word] for word in ("exact", "over", "under", "unreported") if shown[word]}


@pytest.mark.parametrize(
    ("thought", "answer", "told", "compared"),
    [
        pytest.param(
            {},
            (64, 0, None),
            ["p:1 prefilled 64, 0 predicted, 0 reported"],
            {"exact": 1},
            id="as it was thought",
        ),
        pytest.param(
            {},
            (64, 32, None),
            ["p:1 prefilled 64, 0 predicted, 32 reported"],
            {"under": 1},
            id="more was cached",
        ),
        pytest.param(
            {},
            (64, None, None),
            ["p:1 prefilled 64, 0 predicted, None reported"],
            {"unreported": 1},
            id="it does not say what was cached",
        ),
        pytest.param(
            {},
            (65, 0, None),
            [
                "p:1 counts otherwise",
                "distrust chat",
                "p:1 prefilled 65, None predicted, 0 reported",
            ],
            {"exact": 1},
            id="it counts the prompt otherwise",
        ),
        pytest.param(
            {},
            (None, 0, None),
            ["p:1 prefilled None, 0 predicted, 0 reported"],
            {"exact": 1},
            id="it does not say how long the prompt is",
        ),
        pytest.param(
            {"tokens": None},
            (70, 32, None),
            ["p:1 prefilled 70, None predicted, 32 reported"],
            {},
            id="nothing was known of the prompt",
        ),
        pytest.param(
            {"prefix_only": True},
            (900, 800, None),
            ["p:1 prefilled 900, 0 predicted, 64 reported"],
            {"under": 1},
            id="more followed than was known",
        ),
        pytest.param(
            {},
            (64, 0, "engine-7"),
            ["p:1 rank 0 is engine-7", "p:1 prefilled 64, 0 predicted, 0 reported"],
            {"exact": 1},
            id="it names its process",
        ),
    ],
)
def test_a_prefill_leg(
    thought: dict[str, Any],
    answer: tuple[int | None, int | None, str | None],
    told: list[str],
    compared: dict[str, int],
) -> None:
    scene = Scene(**thought)
    prompt_tokens, cached_tokens, engine_id = answer
    scene.placed.hold.answered(Handoff(None, prompt_tokens, cached_tokens, engine_id), 0.0)
    scene.prefilled()
    assert (scene.told.words, scene.compared()) == (told, compared)


def test_what_is_compared_of_a_distrusted_kind_is_put_down_to_its_tokens() -> None:
    scene = Scene(distrusted={"chat"})
    scene.placed.hold.answered(Handoff(None, 64, 32, None), 0.0)
    scene.prefilled()
    assert scene.accuracy.status("p:1", 0).misses.tokens == 1


def test_an_instance_that_was_removed_meanwhile_has_no_process() -> None:
    scene = Scene()
    scene.fleet.remove("p:1")
    scene.placed.hold.answered(Handoff(None, 64, 0, "engine-7"), 0.0)
    scene.prefilled()
    assert scene.told.words == ["p:1 prefilled 64, 0 predicted, 0 reported"]


async def stream() -> Any:
    yield b"data: [DONE]\n\n"


USAGE = b'{"usage": {"prompt_tokens": %d, "prompt_tokens_details": {"cached_tokens": %d}}}'


@pytest.mark.parametrize(
    ("body", "told", "compared"),
    [
        pytest.param(USAGE % (64, 0), [], {"exact": 1}, id="as it was thought"),
        pytest.param(
            USAGE % (65, 32),
            ["b:1 counts otherwise", "distrust chat"],
            {"under": 1},
            id="it counts the prompt otherwise",
        ),
        pytest.param(b"no JSON", [], {"unreported": 1}, id="an answer nobody can read"),
        pytest.param(
            USAGE % (65, 0) + b" " * MAX_READ_BYTES, [], {"unreported": 1}, id="one too long to be read"
        ),
        pytest.param(None, [], {"unreported": 1}, id="a stream"),
    ],
)
def test_an_instance_that_serves_a_request_whole(
    body: bytes | None, told: list[str], compared: dict[str, int]
) -> None:
    scene = Scene(one_leg=True)
    reply = Reply(200, [], stream() if body is None else body, scene.placed.decision)
    scene.learning.served_whole(scene.placed, reply, COMPLETIONS)
    assert (scene.told.words, scene.compared()) == (told, compared)


def test_nothing_is_read_where_nothing_is_compared() -> None:
    scene = Scene(one_leg=True)
    scene.placed.prefill_over()
    scene.placed.comparison = None
    scene.learning.served_whole(
        scene.placed, Reply(200, [], USAGE % (65, 0), scene.placed.decision), COMPLETIONS
    )
    assert scene.told.words == []
