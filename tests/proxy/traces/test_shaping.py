"""A workload that is changed is otherwise the same."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import TraceError
from proxy.traces.shaping import (
    between,
    faster,
    for_one_model,
    sharing_prefix,
    spread,
    staggered,
    unknown_prompts,
)
from proxy.traces.workload import TraceRequest, Workload
from tests.proxy.traces.given import request, workload, workloads

LOOP = workload(
    request(0.0, (1,), session="a"),
    request(4.0, (2,), session="b"),
    request(0.0, (3,), session="a", after=0, think_s=2.0),
    request(4.0, (4,), session="b", after=1, think_s=1.0),
    request(6.0, (5,), session="a", model="m"),
)


def in_order(found: Workload) -> Workload:
    """The workload, if it is one: in order, nobody before the one it waits for, and with that one's begin."""
    begins = [each.at_s for each in found.requests]
    assert begins == sorted(begins)
    for index, each in enumerate(found.requests):
        assert each.after is None or (each.after < index and found.requests[each.after].at_s == each.at_s)
    return found


def contents(found: Workload) -> list[tuple[object, ...]]:
    """What no time changes."""
    return sorted(
        (each.blocks, each.input_tokens, each.think_s, str(each.session)) for each in found.requests
    )


def test_faster_brings_requests_and_sessions_closer_but_nobody_thinks_faster() -> None:
    found = faster(LOOP, 2)
    assert [each.at_s for each in found.requests] == [0.0, 2.0, 0.0, 2.0, 3.0]
    assert [each.think_s for each in found.requests] == [each.think_s for each in LOOP.requests]
    assert found.source == "by hand; 2 times as fast"
    assert faster(LOOP, 1) is LOOP


@pytest.mark.parametrize("factor", [0, -1, math.inf, math.nan])
def test_a_speed_that_is_none_is_refused(factor: float) -> None:
    with pytest.raises(TraceError, match="speed"):
        faster(LOOP, factor)
    with pytest.raises(TraceError, match="sessions a minute"):
        staggered(LOOP, factor)


def test_a_slice_begins_at_0_and_has_whole_loops() -> None:
    found = between(LOOP, 4.0, 6.0)
    assert [(each.at_s, each.blocks, each.after) for each in found.requests] == [
        (0.0, (2,), None),
        (0.0, (4,), 0),
    ]
    assert found.source == "by hand; from 4 to 6 s"
    assert between(LOOP) is LOOP
    with pytest.raises(TraceError, match="no request comes between 7 and inf s"):
        between(LOOP, 7.0)


def test_a_request_whose_predecessor_is_cut_off_comes_when_its_loop_began() -> None:
    odd = workload(request(0.0), request(5.0, after=0, think_s=3.0))
    (found,) = between(odd, 1.0).requests
    assert (found.at_s, found.after, found.think_s) == (4.0, None, 0.0)


def test_equal_times_are_spread_until_the_next_and_keep_their_order() -> None:
    bursts = workload(
        *(request(3.0 * (index // 10), (index,)) for index in range(100)), request(300.0, (100,))
    )
    found = in_order(spread(bursts, seed=1))
    assert [each.blocks for each in found.requests] == [each.blocks for each in bursts.requests]
    assert len({each.at_s for each in found.requests}) == 101
    assert all(b.at_s <= f.at_s < b.at_s + 3.0 for b, f in zip(bursts.requests, found.requests, strict=True))
    assert found.source == "by hand; times spread over 3 s"
    assert spread(bursts, seed=1) == found != spread(bursts, seed=2)
    assert max(each.at_s for each in spread(bursts, bin_s=0.5).requests) < 300.5


def test_times_that_all_differ_are_left_alone() -> None:
    assert spread(LOOP) is LOOP


def test_sessions_that_begin_at_random_are_otherwise_as_they_were() -> None:
    found = in_order(staggered(LOOP, per_minute=6, seed=3))
    assert contents(found) == contents(LOOP)
    mine = [each.at_s for each in found.requests if each.session == "a"]
    assert mine[-1] - mine[0] == pytest.approx(6.0)
    many = staggered(workload(*(request(0.0, (index,)) for index in range(2000))), per_minute=6, seed=3)
    assert many.requests[-1].at_s == pytest.approx(20_000, rel=0.1)


def test_a_shared_prefix_is_whole_blocks_that_no_prompt_had() -> None:
    given_ = workload(
        request(blocks=(-1, 5, 6)),
        request(blocks=(7,), input_tokens=511),
        request(blocks=(8, 9)),
        request(blocks=(1, 2, 3), block_tokens=64, input_tokens=130),
    )
    found = sharing_prefix(given_, 1100)
    long, short, exact, small = [each.blocks for each in found.requests]
    assert long[:2] == exact
    assert long[2] == 6
    assert short == (7,)
    assert small[2] == 3
    assert len({*long, *small}) == 6
    assert not {*exact, *small[:2]} & {-1, 5, 6, 7, 8, 9, 1, 2, 3}


def test_models_can_be_put_aside() -> None:
    assert {each.model for each in for_one_model(LOOP).requests} == {None}


def test_unknown_prompts_are_drawn_by_seed() -> None:
    many = workload(*(request() for _ in range(3000)))
    drawn = unknown_prompts(many, 1 / 3, seed=5)
    assert drawn == unknown_prompts(many, 1 / 3, seed=5) != unknown_prompts(many, 1 / 3, seed=6)
    assert len(drawn) == pytest.approx(1000, rel=0.1)
    assert unknown_prompts(many, 0) == frozenset()
    assert len(unknown_prompts(many, 1)) == 3000
    with pytest.raises(TraceError, match="expected 0 to 1"):
        unknown_prompts(many, 1.5)


@given(workloads(), st.integers(0, 9))
def test_any_workload_stays_one_whatever_is_done_to_its_times(any_workload: Workload, seed: int) -> None:
    from proxy.traces.ordering import in_order as ordered

    whole = msgspec.structs.replace(any_workload, requests=ordered(any_workload.requests))
    for found in (spread(whole, seed), staggered(whole, 2.0, seed), faster(whole, 3.0)):
        assert contents(in_order(found)) == contents(whole)


def test_nothing_but_what_is_named_changes() -> None:
    def rest(each: TraceRequest) -> TraceRequest:
        return msgspec.structs.replace(each, at_s=0.0, after=None)

    for found in (faster(LOOP, 2), between(LOOP, -1.0, 100.0), spread(LOOP), staggered(LOOP, 1.0)):
        assert sorted(map(str, map(rest, found.requests))) == sorted(map(str, map(rest, LOOP.requests)))
