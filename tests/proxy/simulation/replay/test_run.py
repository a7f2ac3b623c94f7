"""A run is the same every time, every request in it ends, and nothing is claimed or held when it is over."""

from collections.abc import Mapping, Sequence

import msgspec
import pytest

from proxy.config import Admission
from proxy.errors import ConfigError
from proxy.scheduling.policies import POLICIES as OWN
from proxy.scheduling.policies import CacheAffinity
from proxy.scheduling.types import Candidate, Leg, View
from proxy.simulation import EngineShape
from proxy.simulation.engine.latency import Linear
from proxy.simulation.replay.baselines import BASELINES, LlmD
from proxy.simulation.replay.baselines.follows import Gauge
from proxy.simulation.replay.records import End
from proxy.simulation.replay.run import Outage, Run, Setup, replay
from proxy.traces.workload import TraceRequest, Workload
from tests.proxy.simulation.replay.workloads import conversations

SMALL = EngineShape(
    block_size=16,
    blocks=400,
    max_batched_tokens=256,
    max_sequences=16,
    max_model_len=100_000,
    profile=Linear(a=0.01, b=1e-4, s0=0.02, s1=1e-3, s2=1e-6, transfer_per_token=1e-5, handshake=0.1),
)
POLICIES = [*OWN, *BASELINES]


def run(workload: Workload, setup: Setup, shape: EngineShape = SMALL) -> Run:
    made = Run(workload, setup, shape=shape)
    made.to_end()
    return made


def outcomes(made: Run) -> list[tuple[object, ...]]:
    return [
        (r.prefill_on, r.decode_on, r.reused_tokens, r.external_tokens, r.first_token_s, r.ended_s)
        for r in made.records
    ]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fleet", ["3b", "2p2d", "1p1d1b"])
def test_every_request_ends_and_nothing_is_left(policy: str, fleet: str) -> None:
    made = run(conversations(150), Setup(fleet=fleet, policy=policy))
    assert {record.end for record in made.records} == {End.SERVED}
    assert all(r.asked_s < r.first_token_s <= r.ended_s for r in made.records)
    assert made.at_rest
    while made.time.step():
        pass  # what was planned for what is over: heartbeats, events on their way
    for engine in made.engines.values():
        assert (engine.unfinished, len(engine.holds), engine.cache.pool.usage) == (0, 0, 0.0)


@pytest.mark.parametrize("policy", ["cache_affinity", "dynamo"])
def test_the_index_knows_each_cache_once_all_is_heard(policy: str) -> None:
    made = run(conversations(150), Setup(fleet="2p1d1b", policy=policy, event_delay_s=0.5))
    while made.time.step():
        pass
    known = {slot.instance: blocks for slot, blocks in made.routers[0].index.blocks().items()}
    assert known == {
        address: engine.cache.pool.cached_blocks
        for address, engine in made.engines.items()
        if engine.cache.pool.cached_blocks
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_makes_the_same_run_and_another_seed_another(policy: str) -> None:
    workload, setup = conversations(120), Setup(fleet="2p2d", policy=policy, seed=3)
    assert outcomes(run(workload, setup)) == outcomes(run(workload, setup))
    if policy not in {"round_robin", "llmd"}:  # which seldom have ties
        other = msgspec.structs.replace(setup, seed=4)
        assert outcomes(run(workload, setup)) != outcomes(run(workload, other))


@pytest.mark.parametrize("fleet", ["3b", "2p2d"])
def test_skipped_steps_change_no_figure(fleet: str) -> None:
    workload = conversations(150, rate=10.0)
    skipping = Run(workload, Setup(fleet=fleet), shape=SMALL)
    plain = Run(workload, Setup(fleet=fleet, skips=False), shape=SMALL)
    figures, others = skipping.to_end(), plain.to_end()
    assert [row[:4] for row in outcomes(skipping)] == [row[:4] for row in outcomes(plain)]
    for name in ("ttft_ms", "tpot_ms", "whole_ms"):
        ours, theirs = (msgspec.structs.astuple(getattr(each, name)) for each in (figures, others))
        assert ours == pytest.approx(theirs)
    assert figures.itl_ms.mean == pytest.approx(others.itl_ms.mean)
    assert figures.itl_ms.p99 == pytest.approx(others.itl_ms.p99, rel=0.02)
    assert figures.decode_use == pytest.approx(others.decode_use)
    assert [each.steps for each in figures.instances.values()] == [
        each.steps for each in others.instances.values()
    ]


def bypassed(made: Run) -> list[tuple[int, int]]:
    """The prompt's length, and what of it was cached, of each request that a decode instance served whole."""
    found = []
    for record in made.records:
        assert record.bypassed is (record.prefill_on == record.decode_on)
        if record.bypassed:
            assert record.decode_on.startswith("d")
            assert record.external_tokens == 0
            found.append((record.input_tokens, record.reused_tokens))
    return found


@pytest.mark.parametrize("policy", ["cache_affinity", "least_ms", "round_robin", "dynamo"])
def test_what_a_decode_instance_has_little_left_of_it_serves_whole(policy: str) -> None:
    workload, setup = conversations(200, rate=2.0), Setup(fleet="2p2d", policy=policy)
    tokens = sorted(request.input_tokens for request in workload.requests)[50]
    made = Run(workload, msgspec.structs.replace(setup, bypass_tokens=tokens), shape=SMALL)
    figures = made.to_end()
    assert {record.end for record in made.records} == {End.SERVED}
    found = bypassed(made)
    short = sum(record.input_tokens <= tokens for record in made.records)
    assert sum(length <= tokens for length, _ in found) == short >= 51
    longer = [(length, cached) for length, cached in found if length > tokens]
    assert all(cached > 0 for _, cached in longer)
    assert longer, "what is fetched for one turn is cached in the next"
    assert figures.bypassed == len(found) < 200
    assert sum(engine.use.prefilled_tokens for name, engine in made.engines.items() if name[0] == "d")
    assert made.at_rest
    unknown = run(workload, msgspec.structs.replace(setup, bypass_tokens=tokens, unknown_share=1.0))
    assert not bypassed(unknown)
    assert not bypassed(run(workload, msgspec.structs.replace(setup, bypass_tokens=0)))


class Alone:
    """A policy that has decode instances serve everything that they may."""

    unit = "legs"
    weighs_bypass = True

    def prices(self, view: View) -> list[float]:
        return [(1.0 if pair.one_leg else 2.0) + pair.decode.running_legs / 100 for pair in view.pairs]


@pytest.mark.parametrize(("tokens", "all_of_them"), [(None, True), (0, False)])
def test_a_policy_that_weighs_one_leg_decides_under_auto_alone(tokens: int | None, all_of_them: bool) -> None:
    workload = conversations(100)
    setup = Setup(fleet="1p2d", policy="alone", bypass_tokens=tokens)
    made = Run(workload, setup, shape=SMALL, policy=Alone)
    figures = made.to_end()
    assert len(bypassed(made)) == figures.bypassed == (100 if all_of_them else 0)
    assert (figures.transferred_tokens == 0) is all_of_them
    assert made.at_rest


def test_requests_of_a_decode_instance_that_dies_are_served_all_the_same() -> None:
    outages = [Outage("d0:1", 5.0, 20.0), Outage("p0:1", 40.0, 10.0)]
    setup = Setup(fleet="1p2d", policy="alone", outages=outages)
    made = Run(conversations(150, rate=4.0), setup, shape=SMALL, policy=Alone)
    made.to_end()
    assert {record.end for record in made.records} == {End.SERVED}
    assert max(record.attempts for record in made.records) > 1
    assert made.at_rest


def test_affinity_reuses_what_round_robin_does_not() -> None:
    workload = conversations(300, rate=2.0)
    affine, round_robin = (
        Run(workload, Setup(fleet="4b", policy=policy), shape=SMALL).to_end()
        for policy in ("cache_affinity", "round_robin")
    )
    assert affine.reuse > 1.2 * round_robin.reuse
    assert affine.ttft_ms.mean < round_robin.ttft_ms.mean


class Watching(CacheAffinity):
    """Notes what the first instance has to do, as it is asked of each prompt."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        first = candidates[0]
        self.seen.append((first.prefill_tokens, first.decode_tokens, first.running_legs))
        return super().costs(leg, candidates)


def test_a_prompt_is_work_until_its_first_token_as_it_is_when_serving() -> None:
    def request(at_s: float, blocks: Sequence[int]) -> TraceRequest:
        return TraceRequest(at_s, 16 * len(blocks), 200, tuple(blocks), 16)

    policy = Watching()
    asked = [request(0.0, range(50)), request(0.01, range(100, 140)), request(2.0, range(200, 220))]
    made = Run(Workload("three", asked, "by hand"), Setup(fleet="1b"), shape=SMALL, policy=lambda: policy)
    made.to_end()
    assert [record.end for record in made.records] == [End.SERVED] * 3
    assert made.records[0].ended_s > asked[2].at_s > made.records[1].first_token_s
    assert policy.seen == [(0, 0, 0), (800, 800, 1), (0, 1440, 2)]


def test_a_closed_loop_waits_for_the_end_of_the_request_before() -> None:
    workload = conversations(100, closed=True)
    made = run(workload, Setup(fleet="2b"))
    followers = [(n, r.after) for n, r in enumerate(workload.requests) if r.after is not None]
    assert followers
    for number, after in followers:
        assert made.records[number].asked_s == pytest.approx(made.records[after].ended_s + 0.25)


def test_a_transfer_carries_what_the_decode_instance_lacks() -> None:
    made = run(conversations(200, rate=1.0), Setup(fleet="1p1d", policy="cache_affinity"))
    assert all(0 < r.external_tokens <= r.input_tokens for r in made.records)
    assert any(r.external_tokens < r.input_tokens for r in made.records)


def test_limits_let_requests_wait_in_the_queue() -> None:
    workload = conversations(100, rate=50.0)
    free = Run(workload, Setup(fleet="2b"), shape=SMALL).to_end()
    limited = run(workload, Setup(fleet="2b", admission=Admission(max_decode_tokens=2000)))
    assert free.waited_ms.mean == 0.0
    assert any(record.waited_s > 0 for record in limited.records)
    assert {record.end for record in limited.records} == {End.SERVED}
    assert limited.at_rest


def test_who_waits_too_long_is_refused_and_counts_as_missed() -> None:
    admission = Admission(max_decode_tokens=1500, queue_timeout_s=0.5)
    made = Run(conversations(100, rate=50.0), Setup(fleet="1b", admission=admission), shape=SMALL)
    figures = made.to_end()
    assert figures.refused > 0
    assert figures.served + figures.refused == figures.requests == 100
    assert figures.good <= figures.served / figures.requests
    assert made.at_rest


@pytest.mark.parametrize(("fleet", "address"), [("3b", "b1:1"), ("2p2d", "p0:1"), ("2p2d", "d1:1")])
def test_requests_survive_an_instance_that_dies(fleet: str, address: str) -> None:
    outages = [Outage(address, at_s=at_s, down_s=1.0) for at_s in (2.0, 5.0, 8.0)]
    setup = Setup(fleet=fleet, policy="cache_affinity", outages=outages)
    made = Run(conversations(150, rate=15.0), setup, shape=SMALL)
    figures = made.to_end()
    assert figures.retries > 0
    assert figures.served == figures.requests
    assert made.at_rest
    while made.time.step():
        pass
    for engine in made.engines.values():
        assert (engine.unfinished, len(engine.holds), engine.cache.pool.usage) == (0, 0, 0.0)


def test_a_fleet_that_is_gone_for_good_refuses_what_waits_for_it() -> None:
    setup = Setup(
        fleet="1b",
        outages=[Outage("b0:1", 1.0, 1e6)],
        admission=Admission(queue_timeout_s=3.0),
    )
    made = Run(conversations(40), setup, shape=SMALL)
    figures = made.to_end()
    assert 0 < figures.served < figures.requests
    assert figures.served + figures.refused + figures.failed == figures.requests


def test_a_prompt_larger_than_an_engine_is_refused() -> None:
    request = TraceRequest(0.0, 100_000, 10, tuple(range(200)), 512)
    figures = Run(Workload("large", [request], "a test"), Setup(fleet="1b"), shape=SMALL).to_end()
    assert (figures.served, figures.refused) == (0, 1)


def test_unknown_prompts_are_placed_by_load() -> None:
    workload = conversations(200, rate=2.0)
    known, unknown = (
        Run(workload, Setup(fleet="4b", unknown_share=share), shape=SMALL).to_end() for share in (0.0, 1.0)
    )
    assert unknown.served == unknown.requests
    assert unknown.reuse < known.reuse


@pytest.mark.parametrize(("fleet", "address"), [("3b", "b0:1"), ("2p2d", "d0:1")])
def test_several_routers_share_a_fleet(fleet: str, address: str) -> None:
    workload = conversations(200, rate=10.0)
    outages = [Outage(address, at_s, 1.0) for at_s in (3.0, 6.0, 9.0)]
    made = run(workload, Setup(fleet=fleet, routers=3, outages=outages))
    assert {record.end for record in made.records} == {End.SERVED}
    assert any(record.attempts > 1 for record in made.records)
    assert made.at_rest
    assert all(sum(router.index.blocks().values()) for router in made.routers)


def test_least_load_of_several_routers_is_worse_than_of_one() -> None:
    workload = conversations(300, rate=25.0)
    one, many = (
        Run(workload, Setup(fleet="6b", policy="least_load", routers=routers), shape=SMALL).to_end()
        for routers in (1, 50)
    )
    assert one.ttft_ms.mean < many.ttft_ms.mean


def test_a_workload_at_twice_its_speed_comes_in_half_the_time() -> None:
    requests = [TraceRequest(2.0 * number, 64, 4, (number,), 64) for number in range(4)]
    made = run(Workload("steady", requests, "a test"), Setup(fleet="1b", speed=2.0))
    assert [record.asked_s for record in made.records] == [0.0, 1.0, 2.0, 3.0]


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    workload = conversations(300, rate=50.0)
    replay(workload, Setup(fleet="4b"), progress=lambda over, of, _: told.append((over, of)))
    assert told == [(256, 300), (300, 300)]


@pytest.mark.parametrize(
    "setup",
    [
        Setup(fleet="4x"),
        Setup(fleet="4p"),
        Setup(policy="best"),
        Setup(profile="none"),
        Setup(speed=0.0),
        Setup(fleet="2b", speeds={"b7:1": 2.0}),
        Setup(fleet="2b", speeds={"b0:1": 0.0}),
        Setup(routers=0),
        Setup(fleet="2b", outages=[Outage("p0:1", 0.0, 1.0)]),
    ],
)
def test_a_setup_that_cannot_be_run_is_refused(setup: Setup) -> None:
    with pytest.raises(ConfigError):
        Run(conversations(1), setup)


class CountsScrapes(LlmD):
    """Counts how often it was told the gauges."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Mapping[str, Gauge]] = []

    def scraped(self, gauges: Mapping[str, Gauge]) -> None:
        super().scraped(gauges)
        self.seen.append(gauges)


def test_gauges_are_not_scraped_while_nothing_runs() -> None:
    """A year between two requests would be 630 million scrapes."""
    year_s = 365 * 86400.0
    requests = [TraceRequest(at_s, 100, 20, tuple(range(7)), 16) for at_s in (0.0, 1.0, year_s, year_s)]
    policy = CountsScrapes()
    made = Run(Workload("sparse", requests, "made up"), Setup(fleet="2b"), shape=SMALL, policy=lambda: policy)
    made.to_end()
    assert {record.end for record in made.records} == {End.SERVED}
    busy_s = sum(record.whole_s for record in made.records)
    assert 10 < len(policy.seen) < busy_s / 0.05 + 10
    assert sum(gauge.running for gauge in policy.seen[-2].values()) == 2  # and again once something does
