"""Engines that are full, die and come back lose no request: each ends once, right to the token, and leaves
nothing.

Simulated time, as `test_a_simulated_day.py`: there every engine takes all and lives.
"""

import functools
import itertools
import random
import time

import pytest

from kvevents import Prompt
from proxy.config import Admission
from proxy.phases import Phase
from proxy.scheduling.policies import CacheAffinity
from proxy.scheduling.question import Question
from proxy.serving.legs.leg import Reason
from tests.helpers.simulated import Simulated
from tests.helpers.simulated_requests import ATTEMPTS, Asked

HOUR_S = 3600.0
CROWD_AT = 1800.0
RESTARTS_FROM, RESTARTS_UNTIL = 600.0, 3300.0
LATE_AT = 3400.0
"""When nobody dies any more, so that nothing is forgotten with a process."""
DOWN_S, SHORTLY_S = 20.0, 3.0
CPU_S = 30.0
"""Many times what it takes."""
ROOM = 4
PER_CLIENT = 40


def requests(seed: int) -> list[Asked]:
    """Conversations for an hour, and in its middle a crowd of one client, a few requests of another, and two
    clients that want the same; near its end a crowd again.
    """
    rng = random.Random(seed)
    made: list[Asked] = []
    at = 0.0
    while (at := at + rng.expovariate(0.08)) < HOUR_S:
        turns, when = [1000 + rng.randrange(4)] * 128, at
        for _ in range(rng.randint(1, 4)):
            turns = [*turns, *(rng.randrange(300, 4000) for _ in range(rng.randint(20, 90)))]
            made.append(Asked(0, f"client{rng.randrange(5)}", turns, rng.randint(4, 40), when))
            when += rng.uniform(5.0, 60.0)
    made += [Asked(0, "crowd", [2000 + n] * 300, 8, CROWD_AT) for n in range(200)]
    made += [Asked(0, "patient", [3000 + n] * 300, 8, CROWD_AT + n / 10) for n in range(1, 11)]
    for client in ("left", "right"):
        made += [Asked(0, client, [3500 + n] * 300, 8, CROWD_AT + 1.0) for n in range(PER_CLIENT)]
    made += [Asked(0, "late", [3900 + n] * 300, 8, LATE_AT) for n in range(60)]
    made.sort(key=lambda asked: asked.at)
    for number, asked in enumerate(made):
        asked.number = number
    return made


def live(asked: list[Asked], *, hard: bool) -> Simulated:
    """An hour of a fleet of all roles; `hard`: its engines have little room, and die one after another."""
    limits = Admission(queue_timeout_s=20.0, max_queue=400)
    simulated = Simulated(
        CacheAffinity(), prefill=2, decode=2, both=1, room=ROOM if hard else None, limits=limits
    )
    for each in asked:
        simulated.world.after(each.at, functools.partial(simulated.ask, each))
    if hard:
        rng = random.Random(7)
        at = RESTARTS_FROM
        while at < RESTARTS_UNTIL:
            for address in simulated.engines:
                at += rng.uniform(10.0, 40.0)
                simulated.world.after(at, functools.partial(simulated.restart, address, DOWN_S))
        for number, address in enumerate(simulated.engines):
            moment = CROWD_AT + 0.5 + 5 * number
            simulated.world.after(moment, functools.partial(simulated.restart, address, SHORTLY_S))
    simulated.world.run()
    return simulated


Hour = tuple[list[Asked], Simulated, float]


@pytest.fixture(scope="module")
def hard() -> Hour:
    """The requests of the hour, the fleet afterwards, and the CPU seconds it took."""
    asked = requests(seed=8)
    began = time.process_time()
    simulated = live(asked, hard=True)
    return asked, simulated, time.process_time() - began


def test_each_kind_of_trouble_has_happened(hard: Hour) -> None:
    asked, simulated, cpu_s = hard
    assert cpu_s < CPU_S
    for phase in Phase:
        assert simulated.failures[phase, Reason.FULL] > 10
    assert {Reason.BROKEN, Reason.STATUS} <= {reason for _, reason in simulated.failures}
    assert {each.one_leg for each in asked} == {True, False}
    assert max(len(each.failed) for each in asked) > ATTEMPTS, "to be turned away is no failed attempt"
    assert min(simulated.sent.values()) > 0


def test_each_request_ends_once_and_its_answer_is_what_it_is_on_a_calm_day(hard: Hour) -> None:
    asked, _, _ = hard
    assert {each.ends for each in asked} == {1}
    calm = requests(seed=8)
    live(calm, hard=False)
    assert not any(each.failed or each.refused for each in calm)
    served = [(each, other) for each, other in zip(asked, calm, strict=True) if each.refused is None]
    assert len(served) > 0.99 * len(asked)
    assert all(each.answer == other.answer for each, other in served)


def test_nothing_is_left_of_legs_that_failed(hard: Hour) -> None:
    asked, simulated, _ = hard
    engines = [engine.model for engine in simulated.engines.values()]
    left = {
        "claims": sum(instance.running_legs() for instance in simulated.fleet),
        "tokens": sum(instance.running_weight_tokens() for instance in simulated.fleet),
        "sent": sum(instance.fullness.legs for instance in simulated.fleet),
        "waiting": len(simulated.lanes),
        "clients": simulated.lanes.status().running_clients,
        "legs": sum(engine.unfinished for engine in engines),
        "holds": sum(len(engine.holds) for engine in engines),
    }
    assert set(left.values()) == {0}, left
    nothing_expected = simulated.new_placement()
    for each in asked:
        question = Question("tiny", Prompt(each.tokens), len(each.tokens))
        found, known = (
            one.decide(question).prefill.candidates for one in (simulated.placement, nothing_expected)
        )
        assert [one.candidate.uncached_tokens for one in found] == [
            one.candidate.uncached_tokens for one in known
        ]


def test_an_engine_that_is_full_is_learned_from(hard: Hour) -> None:
    _, simulated, _ = hard
    turned_away = sum(count for (_, reason), count in simulated.failures.items() if reason is Reason.FULL)
    assert turned_away < sum(simulated.sent.values()) / 3


def test_a_process_that_is_new_is_expected_to_have_nothing_of_the_old_one(hard: Hour) -> None:
    asked, _, _ = hard
    served = [each for each in asked if each.refused is None]
    exact = [each for each in served if each.predicted_tokens == each.reused_tokens]
    assert len(exact) > 0.97 * len(served)
    assert sum(each.reused_tokens for each in served) > 0.3 * sum(len(each.tokens) for each in served)


def test_clients_that_want_the_same_are_served_alike_by_engines_that_are_full(hard: Hour) -> None:
    asked, _, _ = hard
    begun = sorted(
        (each.first_token_at, each.client)
        for each in asked
        if each.client in ("left", "right") and each.first_token_at is not None
    )
    ahead = list(itertools.accumulate(1 if client == "left" else -1 for _, client in begun))
    assert len(begun) > 1.9 * PER_CLIENT
    assert max(map(abs, ahead)) < PER_CLIENT / 2
