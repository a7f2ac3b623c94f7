"""Requests count for what they will surely make engines hold and do, not for what they merely allow."""

import json
import math
from typing import Any

import pytest

from kvevents import PrefixIndex
from proxy.config import Admission, parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.phases import Phase, Role
from proxy.request import dialects
from proxy.request.generation import read_request
from proxy.request.weights import MAX_SEQUENCES, generated_tokens
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import CacheAffinity
from proxy.scheduling.question import Question

EXPECTED = 500
PROMPT: dict[str, Any] = {"prompt": "hi"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("members", "room", "tokens"),
    [
        (PROMPT, 8000, 16),  # what an absent max_tokens means
        (PROMPT | {"max_tokens": 100}, 8000, 100),
        (PROMPT | {"max_tokens": 100_000}, 1_000_000, EXPECTED),  # never used, most likely
        (PROMPT | {"max_tokens": 100_000, "n": 128}, 1_000_000, 128 * EXPECTED),
        (PROMPT | {"max_tokens": 100, "n": 2, "best_of": 5}, 8000, 500),
        (PROMPT | {"max_tokens": 100, "n": 5, "best_of": 2}, 8000, 500),
        (PROMPT | {"max_tokens": 100, "best_of": "3"}, 8000, 300),  # as pydantic reads it
        (PROMPT | {"max_tokens": 100, "best_of": [1] * 9}, 8000, 100),
        (PROMPT | {"max_tokens": 100, "n": 10**30}, 8000, 100 * MAX_SEQUENCES),
        (PROMPT | {"prompt": ["a", "b", "c"], "max_tokens": 10, "n": 2}, 8000, 60),
        (PROMPT | {"max_tokens": 4000, "min_tokens": 3000}, 8000, 3000),
        (PROMPT | {"max_tokens": 4000, "ignore_eos": True}, 8000, 4000),
        (PROMPT | {"max_tokens": 4000, "ignore_eos": True}, 1000, 1000),
        (PROMPT | {"max_tokens": 4000, "ignore_eos": "perhaps"}, 8000, EXPECTED),
        (PROMPT | {"max_tokens": 400}, 7, 7),
        (PROMPT | {"max_tokens": 400}, -7, 1),  # refused later
        (CHAT, 8000, EXPECTED),
        (CHAT, 30, 30),
        (CHAT, math.inf, EXPECTED),
        (CHAT | {"ignore_eos": True}, math.inf, EXPECTED),
        (CHAT | {"ignore_eos": True}, 8000, 8000),
        (CHAT | {"max_completion_tokens": 20, "max_tokens": 9, "n": None}, 8000, 20),
    ],
)
def test_the_weight_of_answers(members: dict[str, Any], room: float, tokens: int) -> None:
    dialect = dialects.CHAT if "messages" in members else dialects.COMPLETIONS
    request = read_request(dialect, json.dumps(members).encode(), "tiny")
    assert generated_tokens(request, request.answer_limit, room, EXPECTED) == tokens


def placement(**limits: Any) -> tuple[Fleet, Placement]:
    fleet = Fleet()
    for address, role in (("p:1", Role.PREFILL), ("d:1", Role.DECODE), ("e:1", Role.DECODE)):
        instance = Instance(parse_instance(address, role))
        instance.came_up()
        instance.listed([ModelCard("tiny")], 0.0)
        fleet.add(instance)
    made = Placement(
        fleet,
        PrefixIndex(),
        CacheAffinity(),
        "cache_affinity",
        clock=lambda: 0.0,
        limits=Admission(**limits),
    )
    return fleet, made


def admitted(made: Placement, question: Question, most: int = 1000) -> int:
    """How many requests find room at once."""
    for count in range(most):
        decision = made.decide(question)
        if not decision.admissible:
            return count
        assert decision.decode.chosen is not None
        assert decision.prefill.chosen is not None
        made.claim(decision.decode.chosen, Phase.DECODE, question)
        made.claim(decision.prefill.chosen, Phase.PREFILL, question)
    return most


@pytest.mark.parametrize(
    ("generated", "at_once"),
    [(128 * EXPECTED, 2), (EXPECTED, 2 * 31), (100, 2 * 145), (0, 1000)],
    ids=["idle engines take anything", "long", "short", "none"],
)
def test_what_is_generated_counts_in_the_limit_of_decode_engines(generated: int, at_once: int) -> None:
    _, made = placement(max_decode_tokens=16_000)
    assert admitted(made, Question("tiny", None, 10, generated_tokens=generated)) == at_once


def test_what_is_generated_counts_in_no_limit_of_prefill_engines() -> None:
    _, made = placement(max_prefill_tokens=100)
    assert admitted(made, Question("tiny", None, 10, generated_tokens=10**6)) == 10


def test_what_is_generated_does_not_count_as_load_for_policies() -> None:
    fleet, made = placement(max_decode_tokens=10**9)
    heavy, light = (Question("tiny", None, 10, generated_tokens=tokens) for tokens in (10**6, 1))
    first = made.decide(heavy).decode.chosen
    assert first is not None
    claim = made.claim(first, Phase.DECODE, heavy)
    seen = {c.candidate.instance: c.candidate for c in made.decide(light).decode.candidates}
    assert (seen[first.instance].load_tokens, seen[first.instance].weight_tokens) == (10, 10**6 + 10)
    instance = fleet.get(first.instance)
    assert instance is not None
    assert instance.running_weight_tokens() == 10**6 + 10
    claim.end()
    assert instance.running_weight_tokens() == instance.weight_tokens(Phase.DECODE, 0) == 0
