"""A day of requests goes through lanes, placement, index and model engines in simulated time, within
seconds."""

import functools
import math
import random
import statistics
import time
from collections.abc import Sequence

import pytest

from proxy.config import Admission
from proxy.scheduling.policies import CacheAffinity, RoundRobin
from proxy.scheduling.types import AnyPolicy, Candidate, Leg
from tests.helpers.simulated import Simulated
from tests.helpers.simulated_requests import Asked

DAY_S = 86_400.0
CPU_S = 60.0
"""Many times what it takes: who steps or looks at a multiple of what is needed is found out."""


def requests(seed: int, until_s: float = DAY_S) -> list[Asked]:
    """Conversations over shared system prompts: few at night, many at noon, and then a crowd of one
    client."""
    rng = random.Random(seed)
    made: list[Asked] = []
    at = 0.0
    while (at := at + rng.expovariate(0.003 + 0.03 * math.sin(math.pi * at / DAY_S) ** 2)) < until_s:
        system = [1000 + rng.randrange(6)] * 128
        turns, when = [*system], at
        for _ in range(rng.randint(1, 6)):
            turns = [*turns, *(rng.randrange(300, 4000) for _ in range(rng.randint(20, 90)))]
            made.append(Asked(0, f"client{rng.randrange(5)}", turns, rng.randint(4, 10), when))
            when += rng.uniform(5.0, 60.0)
    if until_s > DAY_S / 2:
        made += [Asked(0, "crowd", [2000 + n] * 300, 8, DAY_S / 2) for n in range(300)]
        made += [Asked(0, "patient", [3000 + n] * 300, 8, DAY_S / 2 + n / 10) for n in range(1, 11)]
    made.sort(key=lambda asked: asked.at)
    for number, asked in enumerate(made):
        asked.number = number
    return [asked for asked in made if asked.at < until_s]


def live(policy: AnyPolicy, asked: list[Asked], *, night_shift: bool = False) -> Simulated:
    """A day of a fleet. `night_shift`: a decode engine is drained from 1:00 to 2:00."""
    limits = Admission(max_prefill_tokens=2000, max_decode_tokens=3000, queue_timeout_s=2.0, max_queue=150)
    simulated = Simulated(policy, prefill=3, decode=2, limits=limits)
    for each in asked:
        simulated.world.after(each.at, lambda each=each: simulated.ask(each))  # type: ignore[misc]
    if night_shift:
        drained = simulated.instance("decode0:1")
        simulated.world.after(3600.0, drained.drain)
        simulated.world.after(7200.0, drained.undrain)
    simulated.world.run()
    return simulated


def left_over(simulated: Simulated) -> dict[str, int]:
    """What should have ended with the day and has not."""
    engines = [engine.model for engine in simulated.engines.values()]
    return {
        "claims": sum(instance.running_legs() for instance in simulated.fleet),
        "tokens": sum(instance.running_weight_tokens() for instance in simulated.fleet),
        "waiting": len(simulated.lanes),
        "clients": simulated.lanes.status().running_clients,
        "legs": sum(engine.unfinished for engine in engines),
        "holds": sum(len(engine.holds) for engine in engines),
        "expired": sum(engine.holds.expired for engine in engines),
    }


@pytest.fixture(scope="module")
def day() -> tuple[list[Asked], Simulated, float]:
    """The requests of a day, the fleet afterwards, and the CPU seconds it took."""
    asked = requests(seed=1)
    began = time.process_time()
    simulated = live(CacheAffinity(), asked, night_shift=True)
    return asked, simulated, time.process_time() - began


def test_every_request_of_the_day_is_served_or_refused_and_nothing_is_left(
    day: tuple[list[Asked], Simulated, float],
) -> None:
    asked, simulated, cpu_s = day
    assert len(asked) > 4000
    assert cpu_s < CPU_S
    assert all((each.ended_at is None) is (each.refused is not None) for each in asked)
    assert all(len(each.answer) == each.answer_tokens for each in asked if each.refused is None)
    assert simulated.world.now > DAY_S * 0.99
    assert set(left_over(simulated).values()) == {0}, left_over(simulated)
    assert simulated.over_limit == 0


def test_a_crowd_waits_and_is_refused_and_nobody_else_is(day: tuple[list[Asked], Simulated, float]) -> None:
    asked, simulated, _ = day
    assert simulated.max_waiting == 150
    assert set(simulated.refusals) == {"queue_full", "queue_timeout", "shed"}
    assert {each.client for each in asked if each.refused is not None} == {"crowd"}
    crowd, patient = (
        [each.waited_s for each in asked if each.client == client and each.refused is None]
        for client in ("crowd", "patient")
    )
    assert max(patient) < max(crowd) / 4, "who asks for little is not kept waiting by who asks for much"


def test_predictions_are_what_the_engines_reuse(day: tuple[list[Asked], Simulated, float]) -> None:
    asked, _, _ = day
    served = [each for each in asked if each.refused is None]
    exact = [each for each in served if each.predicted_tokens == each.reused_tokens]
    assert len(exact) / len(served) > 0.99
    reused = sum(each.reused_tokens for each in served) / sum(len(each.tokens) for each in served)
    assert reused > 0.5


def test_prompts_that_meet_their_cache_are_answered_sooner() -> None:
    means, reused = [], []
    for policy in (CacheAffinity(), RoundRobin()):
        asked = requests(seed=2, until_s=DAY_S / 4)
        live(policy, asked)
        firsts = [each.first_token_at - each.at for each in asked if each.first_token_at is not None]
        assert len(firsts) == len(asked)
        means.append(statistics.fmean(firsts))
        reused.append(sum(each.reused_tokens for each in asked))
    assert means[0] < means[1]
    assert reused[0] > 1.1 * reused[1]


class UntilTheEnd(CacheAffinity):
    """Takes what runs for work until it has ended."""

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # asked so
        return [(c.uncached_tokens or 0) + c.load_tokens for c in candidates]


def test_long_answers_do_not_drive_chats_from_their_caches() -> None:
    """Chats whose prompts grow, on instances that do both, one of which generates most of the time."""
    means, reused = [], []
    for policy in (CacheAffinity(), UntilTheEnd()):
        rng = random.Random(4)
        simulated = Simulated(policy, prefill=0, decode=0, both=4)
        asked: list[Asked] = []
        for chat in range(24):
            turns, when = [1000 + chat] * 200, rng.uniform(0.0, 60.0)
            for _ in range(6):
                turns = [*turns, *(rng.randrange(300, 4000) for _ in range(60))]
                asked.append(Asked(len(asked), "me", turns, rng.randint(100, 300), when))
                when += rng.uniform(20.0, 40.0)
        for each in asked:
            simulated.world.after(each.at, functools.partial(simulated.ask, each))
        simulated.world.run()
        assert set(left_over(simulated).values()) == {0}
        means.append(statistics.fmean((each.first_token_at or math.inf) - each.at for each in asked))
        reused.append(sum(each.reused_tokens for each in asked))
    assert reused[0] > 1.2 * reused[1]
    assert means[0] < means[1]


def test_the_same_day_is_the_same_again() -> None:
    days = []
    for _ in range(2):
        asked = requests(seed=3, until_s=DAY_S / 12)
        live(CacheAffinity(), asked, night_shift=True)
        days.append([(each.waited_s, each.reused_tokens, each.ended_at, each.refused) for each in asked])
    assert days[0] == days[1]
    assert len(days[0]) > 20
