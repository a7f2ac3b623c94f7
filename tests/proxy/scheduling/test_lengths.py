"""A request goes only where its context fits, waits only for what may fit, and is refused at once where
nothing can."""

import math

import pytest

from proxy.config import parse_instance
from proxy.errors import BadRequestError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.phases import Role
from proxy.scheduling.lengths import Need, longest_context

Lengths = dict[str, int | None]


def fleet_of(**lengths: int | None) -> Fleet:
    """Instances by name: the first letter is the role, `None` tells no length, 0 has told nothing yet."""
    fleet = Fleet()
    for name, length in lengths.items():
        role = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}[name[0]]
        instance = Instance(parse_instance(f"{name}:1", role))
        instance.came_up()
        if length != 0:
            instance.listed([ModelCard("tiny", max_model_len=length), ModelCard("alpha", "tiny")], 0.0)
        fleet.add(instance)
    return fleet


def need(
    fleet: Fleet,
    prompt: int | None,
    answer: int,
    limited_by: str | None = "max_tokens",
    *,
    whole: bool = False,
) -> Need:
    return Need(fleet, "tiny", prompt, answer, limited_by, whole=whole)


@pytest.mark.parametrize(
    ("lengths", "prompt", "answer", "fitting"),
    [
        ({"p": 100, "d": 100}, 50, 50, {"p", "d"}),
        ({"p": 100, "p2": 51, "p3": 50, "d": 100, "d2": 99}, 50, 50, {"p", "p2", "d"}),
        (
            {"p": 100, "d": 100, "d2": 80},
            70,
            50,
            {"p", "d"},
        ),  # no engine holds it all: the longest answer wins
        ({"p": 100, "d": 100, "d2": 40}, None, 60, {"p", "d"}),
        ({"p": 100, "d": 100}, None, 160, {"p"}),
        ({"p": 100, "d": None}, 99, 1000, {"p", "d"}),
        ({"p": 100, "d": None}, 100, 1000, {"d"}),
        ({"b": 100, "b2": 60}, 50, 20, {"b"}),
        ({"b": 100, "d": 200}, 50, 80, {"b", "d"}),  # only one that does both can begin it
        ({"b": 100, "p": 100, "d": 200}, 50, 80, {"p", "d"}),
    ],
)
def test_which_instances_may_have_a_leg(
    lengths: Lengths, prompt: int | None, answer: int, fitting: set[str]
) -> None:
    fleet = fleet_of(**lengths)
    asked = need(fleet, prompt, answer)
    assert {i.address.removesuffix(":1") for i in fleet if asked.fits(i)} == fitting


OUTPUT = "Please request fewer output tokens. (parameter=max_tokens, value={})"
INPUT = (
    "This model's maximum context length is {0} tokens. However, your prompt contains {1} input tokens, "
    "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value={2})"
)


@pytest.mark.parametrize(
    ("lengths", "prompt", "answer", "words"),
    [
        ({"p": 100, "d": 100}, 99, 100, None),
        (
            {"p": 100, "d": 100},
            100,
            1,
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        ),
        ({"p": 100, "d": 80}, 81, 1, INPUT.format(80, "at least 81", 81)),
        ({"p": 80, "d": 100}, 90, 1, INPUT.format(80, "90", 90)),
        (
            {"p": 100, "d": 80},
            10,
            81,
            f"max_tokens=81 cannot be greater than max_model_len=80. {OUTPUT.format(81)}",
        ),
        (
            {"p": 100, "d": 80},
            None,
            81,
            f"max_tokens=81 cannot be greater than max_model_len=80. {OUTPUT.format(81)}",
        ),
        (
            {"p": 10, "b": 50, "d": 100},
            20,
            60,
            f"max_tokens=60 cannot be greater than max_model_len=50. {OUTPUT.format(60)}",
        ),
        ({"p": 10, "d": 100}, 5, 60, None),
        ({"p": 100, "d": 80, "d2": 0}, 90, 1, None),  # one that has told nothing yet may hold it
        ({"p": 100, "d": 80, "d2": None}, 90, 1, None),
        ({"p": 100}, 90, 1, None),  # there is no decode instance at all: nothing is known
        ({}, 90, 1, None),
    ],
)
def test_requests_that_are_refused(
    lengths: Lengths, prompt: int | None, answer: int, words: str | None
) -> None:
    refusal = need(fleet_of(**lengths), prompt, answer).refusal()
    assert (None if refusal is None else str(refusal)) == words


def test_an_answer_nobody_limited_is_as_long_as_fits() -> None:
    fleet = fleet_of(p=100, d=100)
    assert need(fleet, 95, 16, None).refusal() is None
    assert all(need(fleet, 95, 16, None).fits(instance) for instance in fleet)
    assert isinstance(need(fleet, 100, 16, None).refusal(), BadRequestError)


@pytest.mark.parametrize(
    ("lengths", "longest", "alone"),
    [
        ({"p": 100, "d": 80}, 80, 80),
        ({"p": 60, "d": 80}, 60, 80),
        ({"p": 60, "d": 80, "b": 70}, 70, 80),
        ({"p": 60}, None, None),
        ({"d": 60}, None, 60),
        ({"p": None, "d": 60}, 60, 60),
        ({"p": None, "d": None}, math.inf, math.inf),
    ],
)
def test_the_context_that_a_request_can_have(
    lengths: Lengths, longest: float | None, alone: float | None
) -> None:
    instances = list(fleet_of(**lengths))
    assert longest_context(instances) == longest
    assert longest_context(instances, alone=True) == alone
