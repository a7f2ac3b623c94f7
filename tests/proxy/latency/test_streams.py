"""What a rank did between two moments, by the legs that began and ended there."""

import random

import pytest

from proxy.latency.streams import MAX_MOMENTS, Streams, Sums

STEP_MS = 10.0
"""A stream grows by 100 tokens a second."""


def test_nothing_is_known_of_a_rank_without_legs() -> None:
    streams = Streams()
    assert streams.between(0.0, 1.0) == (0, 0, 0)
    assert not streams.has(0.0)


def test_a_stream_counts_from_its_first_token_to_its_end() -> None:
    streams = Streams()
    streams.began(1.0, 500, STEP_MS)
    streams.passes(3.0, STEP_MS)
    assert streams.between(1.0, 3.0).sequences == pytest.approx(1)
    assert streams.between(1.0, 3.0).context_tokens == pytest.approx(600)  # 500 that become 700
    assert streams.between(0.0, 2.0).sequences == pytest.approx(0.5)
    streams.ended(4.0, 500, 1.0, STEP_MS)
    streams.passes(8.0, STEP_MS)
    assert streams.between(0.0, 8.0).sequences == pytest.approx(3 / 8)
    assert (streams.sequences, streams.context_tokens) == (0, 0)


def test_a_stream_that_ends_takes_its_own_growth_with_it() -> None:
    streams = Streams()
    streams.began(0.0, 1000, STEP_MS)
    streams.began(4.0, 2000, STEP_MS)
    streams.ended(10.0, 1000, 0.0, STEP_MS)
    assert streams.context_tokens == pytest.approx(2600)
    streams.ended(12.0, 2000, 4.0, STEP_MS)
    assert streams.context_tokens == 0


def test_contexts_do_not_drift_on_a_rank_that_is_never_idle() -> None:
    streams = Streams()
    for second in range(5000):
        streams.began(float(second), 1000, STEP_MS)
        if second >= 3:
            streams.ended(second + 0.5, 1000, second - 3.0, STEP_MS)
    assert streams.context_tokens == pytest.approx(3 * 1000 + 50 + 150 + 250, abs=1)


def test_streams_of_others_count_with_contexts_like_ours() -> None:
    streams = Streams()
    streams.began(0.0, 1000, 1e12)
    streams.foreign(0.0, 3, 1e12)
    streams.passes(1.0, 1e12)
    assert streams.between(0.0, 1.0)[:2] == pytest.approx((4, 4000))
    streams.foreign(1.0, 0, 1e12)
    streams.passes(2.0, 1e12)
    assert streams.between(1.0, 2.0)[:2] == pytest.approx((1, 1000))


def test_a_prompt_takes_no_longer_than_since_the_one_before() -> None:
    streams = Streams()
    streams.computed(1.0, 2.0, 400.0)
    assert streams.between(0.0, 2.0).prefill_ms == pytest.approx(400)
    streams.computed(1.0, 2.5, 800.0)
    assert streams.between(0.0, 3.0).prefill_ms == pytest.approx(900)
    assert streams.between(2.0, 2.25).prefill_ms == pytest.approx(250)
    assert streams.between(2.5, 3.0).prefill_ms == 0


def test_a_stream_of_a_process_that_was_there_before_is_not_one_of_these() -> None:
    streams = Streams()
    streams.began(5.0, 100, STEP_MS)
    assert streams.has(5.0)
    assert not streams.has(4.9)


def test_sums_are_bounded_and_exact_where_they_are_young() -> None:
    rng, sums, exact, at = random.Random(3), Sums(), [(0.0, 0.0)], 0.0
    sums.add(0.0, 0.0, 0.0)
    for _ in range(5000):
        at += rng.random()
        value = rng.random()
        sums.add(at, value, 2 * value)
        exact.append((at, exact[-1][1] + value))
        assert len(sums) <= MAX_MOMENTS
    for moment, value in exact[-MAX_MOMENTS // 2 :]:
        assert sums.until(moment) == pytest.approx((value, 2 * value))
    for moment, value in exact[::50]:
        assert abs(sums.until(moment)[0] - value) <= 0.05 * exact[-1][1]
    assert sums.until(-1.0) == (0, 0)
    assert sums.until(at + 1)[0] == pytest.approx(exact[-1][1])
