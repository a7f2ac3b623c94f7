"""An engine in simulated time does what a stand-in's model does, step by step, whether steps are skipped or
not.
"""

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents import AllBlocksCleared, BlockStored, Event
from proxy.simulation import EngineModel, EngineShape
from proxy.simulation.engine.latency import DynamoReplay, Linear, Profile
from proxy.simulation.engine.request import Request, Sampling
from proxy.simulation.engine.text import Voice
from proxy.simulation.replay.contents import NamedContents, Names
from proxy.simulation.replay.instance import ReplayedInstance
from proxy.simulation.replay.job import Job
from proxy.simulation.replay.timeline import Timeline, Turn
from proxy.traces.workload import TraceRequest

BLOCK = 4
PROFILES: list[Profile] = [
    Linear(a=0.003, b=1e-4, c=1e-6, s0=0.01, s1=0.002, s2=1e-5),
    DynamoReplay(),
]


class Arrival(NamedTuple):
    at_s: float
    prompt: tuple[int, ...]
    """Ids of blocks of one token."""
    answer_tokens: int


Told = list[tuple[str, list[object]]]


class Ends(NamedTuple):
    """When each request had its first token and its last, and what was cached of it."""

    first_s: dict[str, float]
    last_s: dict[str, float]
    cached: dict[str, int]
    told: Told
    """What each event said, in order: removals one by one, names replaced by numbers in order of
    appearance."""


def arrivals_of(seed: int, count: int) -> list[Arrival]:
    rng = random.Random(seed)
    at_s, made, fresh = 0.0, list[Arrival](), 1000
    for _ in range(count):
        at_s += rng.expovariate(8.0)
        prompt: tuple[int, ...] = ()
        if made and rng.random() < 0.6:
            prompt = rng.choice(made).prompt[: rng.randrange(30)]
        new = rng.randrange(1, 24)
        prompt = (*prompt, *range(fresh, fresh + new))
        fresh += new
        made.append(Arrival(at_s, prompt, rng.randrange(1, 30)))
    return made


def told_of(events: list[Event], numbers: dict[object, int]) -> Told:
    told: Told = []
    for event in events:
        assert not isinstance(event, AllBlocksCleared)
        names = [numbers.setdefault(name, len(numbers)) for name in event.block_hashes]
        if isinstance(event, BlockStored):
            parent = event.parent_block_hash
            told.append(("stored", [None if parent is None else numbers[parent], *names]))
        else:
            told += [("removed", [name]) for name in names]
    return told


def as_a_stand_in(shape: EngineShape, arrivals: list[Arrival]) -> Ends:
    engine = EngineModel(shape, Voice(range(300, 4000), 2), "engine")
    ends = Ends({}, {}, {}, [])
    numbers: dict[object, int] = {}
    now_s, left = 0.0, list(enumerate(arrivals))
    while left or engine.unfinished:
        if not engine.unfinished:
            now_s = max(now_s, left[0][1].at_s)
        while left and left[0][1].at_s <= now_s:
            number, arrival = left.pop(0)
            sampling = Sampling(arrival.answer_tokens, ignore_eos=True)
            engine.add(Request(str(number), list(arrival.prompt), sampling, arrived_s=arrival.at_s))
        step = engine.begin_step(now_s)
        assert step is not None
        now_s += step.duration_s
        for output in engine.end_step(step, now_s):
            name = output.request.id
            ends.first_s.setdefault(name, now_s)
            if output.request.status.finished:
                ends.last_s[name], ends.cached[name] = now_s, output.request.local_hit
        ends.told.extend(told_of(engine.take_events(), numbers))
    return ends


def in_simulated_time(shape: EngineShape, arrivals: list[Arrival], *, skips: bool) -> tuple[Ends, int]:
    """And how many moments it took."""
    time = Timeline()
    ends = Ends({}, {}, {}, [])
    numbers: dict[object, int] = {}
    names = Names(shape.block_size)
    engine = ReplayedInstance(
        time,
        "b0:1",
        shape,
        NamedContents(names),
        publish=lambda events: ends.told.extend(told_of(events, numbers)),
        skips=skips,
    )

    def began(job: Job) -> None:
        ends.first_s[job.id] = time.now_s

    def ended(job: Job) -> None:
        ends.last_s[job.id], ends.cached[job.id] = time.now_s, job.local_hit

    for number, arrival in enumerate(arrivals):
        asked = TraceRequest(arrival.at_s, len(arrival.prompt), arrival.answer_tokens, arrival.prompt, 1)
        job = Job(str(number), len(arrival.prompt), arrival.answer_tokens, names.of_prompt(asked).tolist())
        job.begun, job.ended = began, ended
        time.at(arrival.at_s, Turn.ASK, engine.add, job)
    moments = 0
    while time.step():
        moments += 1
    assert engine.unfinished == 0
    assert engine.cache.pool.usage == 0.0
    return ends, moments


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 25),
    blocks=st.integers(24, 60),
    budget=st.sampled_from([7, 16, 1000]),
    sequences=st.sampled_from([2, 5, 256]),
    profile=st.sampled_from(PROFILES),
)
def test_the_same_requests_take_the_same_steps_and_tell_the_same_events(
    seed: int, count: int, blocks: int, budget: int, sequences: int, profile: Profile
) -> None:
    shape = EngineShape(
        block_size=BLOCK,
        blocks=blocks,
        max_model_len=10_000,
        max_batched_tokens=budget,
        max_sequences=sequences,
        profile=profile,
    )
    arrivals = arrivals_of(seed, count)
    plain = as_a_stand_in(shape, arrivals)
    for skips in (False, True):
        ends, _ = in_simulated_time(shape, arrivals, skips=skips)
        assert ends.first_s == pytest.approx(plain.first_s, abs=1e-9)
        assert ends.last_s == pytest.approx(plain.last_s, abs=1e-9)
        assert ends.cached == plain.cached
        assert ends.told == plain.told


def test_long_answers_take_few_moments() -> None:
    shape = EngineShape(block_size=64, blocks=1000, max_model_len=100_000, profile=PROFILES[0])
    arrivals = [Arrival(0.0, tuple(range(100)), 2000)]
    ends, moments = in_simulated_time(shape, arrivals, skips=True)
    plainly, plain_moments = in_simulated_time(shape, arrivals, skips=False)
    assert ends.last_s == pytest.approx(plainly.last_s)
    assert moments < plain_moments / 15


def test_an_engine_twice_as_fast_takes_half_as_long() -> None:
    time = Timeline()
    shape = EngineShape(block_size=64, blocks=100, profile=PROFILES[0])
    ended: list[float] = []
    for speed in (1.0, 2.0):
        engine = ReplayedInstance(time, f"b{speed}:1", shape, NamedContents(Names(64)), speed=speed)
        job = Job("a", 50, 200, [])
        job.ended = lambda _: ended.append(time.now_s)
        engine.add(job)
    while time.step():
        pass
    assert ended[1] == pytest.approx(2 * ended[0])
