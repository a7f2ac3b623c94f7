"""The proof of both worlds: both are asked the same, its judge sees what differs, and its short form agrees
where no clock of a busy machine decides.
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from proxy.latency.profiles import PROFILES as BELIEVED
from proxy.latency.profiles import UNKNOWN
from proxy.simulation import Fault, StandIn
from proxy.simulation.engine.latency import PROFILES, DynamoReplay, Linear
from proxy.simulation.replay.contents import Names
from proxy.simulation.replay.figures import Figures, Spread
from proxy.simulation.replay.records import Record
from proxy.simulation.replay.run import Run as Replay
from proxy.simulation.replay.run import Setup
from proxy.traces.workload import TraceRequest, Workload
from tests.proofs.live import verdict as v
from tests.proofs.live.clients import Clients, Seen
from tests.proofs.live.engines import MODEL, config_of
from tests.proofs.live.prompts import body_of, tokens_of
from tests.proofs.live.report import checks, own_times, worlds, write
from tests.proofs.live.run import Options, run
from tests.proofs.live.scaling import Scale, Scaled, scaled_prior, scaled_shape, scaled_workload
from tests.proofs.live.simulated import Simulated
from tests.proofs.live.slices import slice_of

TRAFFIC = "systems:per_s=3,duration_s=6,systems=3,seed=5"


def asked(tokens: int, *blocks: int, size: int = 16, at_s: float = 0.0, **more: Any) -> TraceRequest:
    return TraceRequest(at_s, tokens, 4, blocks, size, **more)


def shared(one: list[int], other: list[int]) -> int:
    """How many tokens two prompts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def test_prompts_share_tokens_where_they_share_blocks() -> None:
    first, second, cut = asked(40, 1, 2, 3), asked(48, 1, 2, 4), asked(24, 1, 2)
    tokens = [tokens_of(number, request) for number, request in enumerate((first, second, cut))]
    assert [len(each) for each in tokens] == [40, 48, 24]
    assert shared(tokens[0], tokens[1]) == 32
    assert shared(tokens[0], tokens[2]) == 24
    assert tokens_of(7, first) == tokens[0]
    unnamed = asked(48, 1)
    assert shared(tokens_of(0, unnamed), tokens_of(1, unnamed)) == 16
    assert shared(tokens_of(0, asked(16, -5)), tokens_of(0, asked(16, 5))) == 0
    names = Names(16)
    alike = [names.of_prompt(each).tolist() for each in (first, second, cut)]
    for (one, its), (other, others) in itertools.combinations(zip(tokens, alike, strict=True), 2):
        assert shared(one, other) // 16 == shared(its, others), "what simulated time says"
    body = json.loads(body_of(0, first, "m"))
    assert body["prompt"] == tokens[0]
    assert (body["max_tokens"], body["ignore_eos"], body["model"]) == (4, True, "m")


def test_a_scale_makes_the_same_engine_with_fewer_tokens() -> None:
    usual, scaled = DynamoReplay(), Scaled(DynamoReplay(), Scale(8, 2, 3.0))
    assert scaled.step_s([(100, 300)], 0, 0, 0.5) == pytest.approx(3 * usual.step_s([(800, 2400)], 0, 0, 0.5))
    assert scaled.step_s([], 4, 1000, 0.5) == pytest.approx(3 * 2 * usual.step_s([], 4, 8000, 0.5))
    assert scaled.transfer_s(100, first=False) == pytest.approx(3 * usual.transfer_s(800, first=False))
    for name in PROFILES:
        profile = Scaled(PROFILES[name], Scale(4, 3, 2.0))
        steps = [profile.step_s([], 3, 500 + 3 * n, 0.1) for n in range(5)]
        assert profile.decode_s(5, 3, 500, 0.1) == pytest.approx(sum(steps))
        for tokens in (1, 8):
            shape = scaled_shape(name, Scale(tokens), block_tokens=512, model=MODEL)
            assert config_of(shape, 0).shape() == shape, "both worlds"
            assert (shape.blocks - 1) * shape.block_size * tokens == 16384 * 64
    prior, unknown = (Linear.of(each) for each in (scaled_prior(Scale(8, 2, 3.0)), BELIEVED[UNKNOWN]))
    assert prior.step_s([(100, 300)], 0, 0, 0) == pytest.approx(3 * unknown.step_s([(800, 2400)], 0, 0, 0))
    assert prior.step_s([], 4, 1000, 0) == pytest.approx(3 * 2 * unknown.step_s([], 4, 8000, 0))
    assert prior.transfer_s(100, first=True) == pytest.approx(3 * unknown.transfer_s(800, first=True))
    workload = Workload("w", [asked(1001, 1, 2, size=512, after=0, think_s=1.0)], "s")
    [request] = scaled_workload(workload, Scale(8, 2, 2.0)).requests
    assert (request.input_tokens, request.output_tokens, request.block_tokens) == (126, 2, 64)
    assert (request.at_s, request.think_s, request.after) == (0.0, 2.0, 0)
    with pytest.raises(ValueError, match="no multiple"):
        scaled_workload(Workload("w", [asked(10, 1, size=12)], "s"), Scale(8))


@functools.cache
def some_figures() -> Figures:
    return Replay(Workload("w", [asked(100, 1)], "s"), Setup(fleet="1b")).to_end()


def cell(
    policy: str,
    live_ms: float,
    simulated_ms: Sequence[float],
    *,
    fleet: str = "4b",
    cached: int = 10,
    error: str = "",
    predicted_ms: float | None = None,
    predicts: bool | None = None,
    whole_ms: float = 9000,
) -> v.Cell:
    """One request of 100 tokens, of which simulated time finds 10 cached."""
    seen = Seen(0.0, tokens_s=[live_ms / 1000, 9.0], prompt_tokens=100, cached_tokens=cached, error=error)
    figures = [
        msgspec.structs.replace(
            some_figures(), ttft_ms=Spread(ttft, 1, 1, 1), whole_ms=Spread(whole_ms, 1, 1, 1), reuse=0.1
        )
        for ttft in simulated_ms
    ]
    simulated = Simulated(figures, [Record(0.0, 100, 2)])
    live = v.Live([seen], 0.0, [predicted_ms], [None])
    predicts = predicted_ms is not None if predicts is None else predicts
    return v.Cell(fleet, policy, simulated, live, predicts)


def found(*cells: v.Cell) -> list[str]:
    """The checks that found something, at a tolerance of a tenth."""
    return [check for check, words in v.judge(cells, 0.1).items() if words]


def test_worlds_agree_within_the_range_of_the_seeds() -> None:
    assert found(cell("a", 109, [90, 100])) == found(cell("a", 82, [90, 100])) == []
    assert found(cell("a", 111, [90, 100])) == found(cell("a", 80, [90, 100])) == [v.TTFT]
    assert found(cell("a", 100, [100], cached=11)) == []
    assert found(cell("a", 100, [100], cached=12)) == found(cell("a", 100, [100], cached=8)) == [v.REUSE]
    assert found(cell("a", 100, [100], error="the stream has no end")) == [v.SERVED, v.TTFT, v.REUSE]
    assert v.off(5.0, [0.0]) == float("inf")
    assert v.off(0.0, [0.0]) == 0.0


def test_the_better_policy_is_the_one_that_was_predicted() -> None:
    worse = cell("worse", 119, [120, 122])
    assert found(worse, cell("better", 109, [100, 105])) == []
    assert found(worse, cell("better", 109, [111, 113])) == [], "too close to be told apart"
    slow = cell("better", 125, [100, 115])
    assert found(cell("worse", 124, [127]), slow) == [v.ORDER]
    assert found(cell("worse", 124, [127], fleet="2p2d"), slow) == [], "another fleet"
    [words] = v.check_order([cell("worse", 124, [127]), slow], 0.1)
    assert (
        words == "4b better was to beat worse by 10% in TTFT, and took 125 ms in the mean where that took 124"
    )
    shorter = cell("better", 120, [120], whole_ms=8000)
    assert found(cell("worse", 120, [120]), shorter) == [v.ORDER], "both took 9 s"


def test_predictions_are_judged_by_their_median() -> None:
    assert found(cell("a", 100, [100], predicted_ms=109)) == []
    assert found(cell("a", 100, [100], predicted_ms=89)) == [v.PREDICTED]
    assert v.PREDICTED not in v.judge([cell("a", 100, [100])], 0.1), "nothing was to be predicted"
    assert found(cell("a", 100, [100], predicts=True)) == [v.PREDICTED], "nothing was"


async def test_clients_tell_what_they_got_and_wait_for_whom_they_follow() -> None:
    first, long = asked(100, *range(7), at_s=0.05), asked(140_000, 2)
    following = asked(100, *range(7), after=0, think_s=0.05)
    shape = scaled_shape("zero", Scale(), block_tokens=512, model=MODEL)
    ended: list[int] = []
    async with StandIn(config_of(shape, 0)) as engine:
        workload = Workload("w", [first, following, long], "s")
        clients = Clients(engine.url, workload, MODEL, tell=lambda count, of: ended.append(count))
        one, other, refused = await clients.all_of_it()
        assert [one.error, other.error] == ["", ""]
        assert (len(one.tokens_s), one.prompt_tokens, one.cached_tokens) == (4, 100, 0)
        assert one.sent_s >= 0.05
        assert one.sent_s <= one.tokens_s[0] <= one.tokens_s[-1] <= one.ended_s
        assert other.sent_s >= one.ended_s + 0.05
        assert other.cached_tokens == 64
        assert refused.error.startswith("400: ")
        assert sorted(ended) == [1, 2, 3]
        engine.faults.add(Fault(kind="cut", after_bytes=500))
        [cut] = await Clients(engine.url, Workload("w", [first], "s"), MODEL).one_by_one()
        assert cut.error
        assert v.Live([cut], 0.0).ttft_ms == 0


@pytest.mark.timeout(300)
def test_half_a_minute_of_both_worlds(tmp_path: pathlib.Path) -> None:
    """The mean TTFT has no upper bound here: that is this machine's affair."""
    workload = slice_of(TRAFFIC, from_s=0, requests=24, speed=1, spreads=True)
    count = len(workload.requests)
    said: list[str] = []
    options = Options(
        workload=workload,
        scale=Scale(8, 8, 1.0),
        logs=tmp_path,
        fleets=("2b", "1p1d"),
        policies=("round_robin",),
        seeds=2,
        alone=8,
    )
    made = run(options, said.append)
    assert [cell.name for cell in made.cells] == ["2b round_robin", "1p1d round_robin"]
    assert f"2b round_robin: {count} of {count} requests" in said
    found = v.judge(made.cells, options.tolerance)
    assert found[v.SERVED] == []
    assert found[v.REUSE] == [], "who takes turns sends each prompt where simulated time does"
    for each in made.cells:
        assert 0.3 < each.live.reuse < 0.9
        assert each.live.ttft_ms > 0.95 * min(each.simulated.ttft_ms), "faster than its profile"
        assert each.live.proxy_cpu_s > 0
        assert {len(made.own[each.fleet])} == {8}
        worlds(made, each.fleet)
    own_times(made)
    checks(made)
    lines = [json.loads(line) for line in write(made).read_bytes().splitlines()]
    assert len(lines) == 2 * count
    assert {line["prefill"].count(":") for line in lines if line["cell"].startswith("1p1d")} == {1}
    assert [line["cached_tokens"] for line in lines] == [line["simulated_cached_tokens"] for line in lines]


@pytest.mark.timeout(300)
def test_what_least_ms_predicts_of_each_request_is_known(tmp_path: pathlib.Path) -> None:
    workload = slice_of(TRAFFIC, from_s=0, requests=8, speed=1, spreads=True)
    scale, fleets, policies = Scale(8, 8, 1.0), ("1p1d",), ("least_ms",)
    options = Options(
        workload=workload, logs=tmp_path, scale=scale, fleets=fleets, policies=policies, seeds=1, alone=0
    )
    made = run(options)
    [cell] = made.cells
    assert made.own == {}
    assert v.judge(made.cells, 0.1)[v.SERVED] == []
    assert len(cell.live.errors) == len(workload.requests) == 8
    assert len(cell.live.own_errors) == 8
    assert all(error > -1 for error in (*cell.live.errors, *cell.live.own_errors)), "predictions are above 0"
    assert v.PREDICTED in v.judge(made.cells, 0.1)
    lines = [json.loads(line) for line in write(made).read_bytes().splitlines()]
    assert all(line["predicted_ttft_ms"] > 0 for line in lines)
