"""What the baselines price, by hand."""

from typing import Any, NamedTuple

from proxy.phases import Phase
from proxy.scheduling.types import Candidate, Leg
from proxy.simulation.replay.baselines import Dynamo, LlmD


class Gauge(NamedTuple):
    waiting: int = 0
    running: int = 0
    usage: float = 0.0


def candidate(name: str, cached: int = 0, **fields: Any) -> Candidate:
    return Candidate(
        name,
        0,
        usable=True,
        why=None,
        cached_tokens=cached,
        expected_tokens=cached,
        uncached_tokens=None,
        load_tokens=0,
        index="exact",
        **fields,
    )


def leg(phase: Phase = Phase.PREFILL, tokens: int = 640) -> Leg:
    return Leg(phase, "model", tokens)


def test_dynamo_counts_an_unfinished_prompt_twice_and_a_running_one_once() -> None:
    policy = Dynamo()
    a, b = candidate("a", 320, serves_all=True), candidate("b", serves_all=True)
    assert policy.costs(leg(), [a, b]) == [5.0, 10.0]
    policy.began(1, a, a, 640)
    assert policy.costs(leg(), [a, b]) == [5 + 5 + 10, 10.0]
    policy.computed(1)
    assert policy.costs(leg(), [a, b]) == [5 + 10, 10.0]
    policy.ended(1)
    assert policy.costs(leg(), [a, b]) == [5.0, 10.0]


def test_dynamo_places_two_legs_by_a_term_each() -> None:
    policy = Dynamo()
    p, d = candidate("p"), candidate("d")
    policy.began(1, p, d, 640)
    assert policy.costs(leg(), [p, candidate("q")]) == [20.0, 10.0]
    assert policy.costs(leg(Phase.DECODE), [d, candidate("e")]) == [10.0, 0.0]
    policy.ended(1)  # it has failed before its prompt was computed
    assert policy.costs(leg(), [p]) == [10.0]


def cheapest(policy: LlmD, *candidates: Candidate) -> str:
    costs = policy.costs(leg(), candidates)
    return candidates[costs.index(min(costs))].instance


def test_llmd_goes_where_the_prefix_is_unless_the_queue_is_long_and_the_memory_full() -> None:
    policy = LlmD()
    a, b = candidate("a", 320), candidate("b")
    assert cheapest(policy, a, b) == "a"
    policy.scraped({"a": Gauge(waiting=9), "b": Gauge()})
    assert cheapest(policy, a, b) == "a"
    policy.scraped({"a": Gauge(waiting=9, usage=0.9), "b": Gauge()})
    assert cheapest(policy, a, b) == "b"


def test_llmd_gives_cold_prompts_to_each_in_turn() -> None:
    policy, given = LlmD(), []
    some = [candidate(name) for name in "abc"]
    for number in range(6):
        name = cheapest(policy, *some)
        chosen = next(each for each in some if each.instance == name)
        policy.began(number, chosen, chosen, 640)
        given.append(name)
    assert given == list("abcabc")
