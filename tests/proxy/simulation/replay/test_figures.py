"""Figures are sums over records, by hand."""

import math

import msgspec
import numpy as np
import pytest

from proxy.simulation.replay.figures import MOST_MOMENTS, NONE, Goals, Spread, figures_of
from proxy.simulation.replay.records import End, Record
from proxy.simulation.replay.use import BIN_S, Use


def record(asked_s: float, first_s: float, ended_s: float, *, prompt: int = 1000, output: int = 11) -> Record:
    made = Record(asked_s, prompt, output)
    made.end, made.attempts = End.SERVED, 1
    made.first_token_s, made.ended_s = first_s, ended_s
    made.prefill_on = made.decode_on = "b0:1"
    return made


def use(prefill_s: float, decode_s: float) -> Use:
    made = Use()
    made.prefill_s, made.decode_s = prefill_s, decode_s
    return made


def test_quantiles_are_nearest_ranks() -> None:
    assert Spread.of(np.arange(1.0, 101.0)) == Spread(50.5, 50.0, 90.0, 99.0)
    assert Spread.of(np.array([7.0])) == Spread(7.0, 7.0, 7.0, 7.0)
    assert Spread.of(np.array([])) == Spread(NONE, NONE, NONE, NONE)


def test_weights_count_a_value_so_often() -> None:
    weighed = Spread.of(np.array([9.0, 1.0]), np.array([1, 99]))
    assert weighed == Spread.of(np.array([1.0] * 99 + [9.0]))


def test_a_request_is_good_only_if_it_was_served_and_reached_all_goals() -> None:
    refused = Record(0.0, 1000, 11)
    refused.end = End.REFUSED
    records = [
        record(0.0, 1.0, 1.1),  # 1 s, 10 ms a token
        record(0.0, 3.0, 3.1),  # too late
        record(0.0, 1.0, 2.0),  # 100 ms a token
        refused,
    ]
    figures = figures_of(records, {"b0:1": use(2.0, 1.0)}, Goals(ttft_ms=2000.0, tpot_ms=50.0))
    assert (figures.requests, figures.served, figures.refused) == (4, 3, 1)
    assert figures.good == 0.25
    assert figures.good_per_s == pytest.approx(1 / 3.1)
    assert figures.ttft_ms.mean == pytest.approx(5000 / 3)
    assert figures.duration_s == pytest.approx(3.1)
    assert figures.instances["b0:1"].requests == 3


def test_reuse_is_the_share_of_all_prompt_tokens() -> None:
    records = [record(0.0, 1.0, 2.0, prompt=3000), record(0.0, 1.0, 2.0, prompt=1000)]
    records[1].reused_tokens = 800
    assert figures_of(records, {}, Goals()).reuse == pytest.approx(0.2)


def test_prompts_are_told_apart_by_their_length() -> None:
    records = [record(0.0, 1.0, 2.0, prompt=1023), record(0.0, 3.0, 4.0, prompt=1024)]
    by_length = figures_of(records, {}, Goals()).ttft_ms_by_length
    assert (by_length["0"].mean, by_length["1024"].mean) == (1000.0, 3000.0)


def test_balance_is_of_the_role_where_it_is_worst() -> None:
    uses = {"p0:1": use(3.0, 0.0), "p1:1": use(1.0, 0.0), "d0:1": use(0.0, 9.0), "d1:1": use(0.0, 9.0)}
    figures = figures_of([record(0.0, 1.0, 10.0)], uses, Goals())
    assert figures.balance == pytest.approx(1.5)
    assert figures.prefill_use == pytest.approx(0.1)
    assert figures.decode_use == pytest.approx(0.45)


def test_nothing_asked_is_nothing_served() -> None:
    figures = figures_of([], {"b0:1": Use()}, Goals())
    assert (figures.requests, figures.good) == (0, 0.0)
    assert all(map(math.isnan, (figures.reuse, figures.ttft_ms.mean, figures.balance)))


def test_what_there_was_none_of_has_no_figure() -> None:
    """Neither a first token nor an answer came: that is not the same as one that came at once."""
    refused = Record(0.0, 1000, 11)
    refused.end = End.REFUSED
    told = msgspec.json.decode(msgspec.json.encode(figures_of([refused], {"b0:1": Use()}, Goals())))
    nothing = {"mean": None, "p50": None, "p90": None, "p99": None}
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "whole_ms"):
        assert told[name] == nothing
    assert told["ttft_ms_by_length"] == dict.fromkeys(("0", "1024", "4096", "16384", "65536"), nothing)
    assert (told["reuse"], told["balance"]) == (None, None)
    assert (told["good"], told["refused"], told["prefill_use"]) == (0.0, 1, 0.0)


def test_what_an_instance_did_is_told_over_time() -> None:
    made = Use()
    made.begins(1.0, running=3, waiting=2, usage=0.25)
    made.stepped(1.0, 0.5, prefilled_tokens=100)
    made.begins(2 * BIN_S - 1.0, running=1, waiting=0, usage=0.5)
    made.stepped(2 * BIN_S - 1.0, 3.0, steps=100)
    figures = figures_of([record(0.0, 1.0, 3 * BIN_S)], {"b0:1": made}, Goals())
    first, second, third = figures.instances["b0:1"].over_time
    assert (first.at_s, second.at_s, third.at_s) == (0.0, BIN_S, 2 * BIN_S)
    assert (first.prefill_use, first.decode_use) == pytest.approx((0.5 / BIN_S, 0.0))
    assert (second.decode_use, third.decode_use) == pytest.approx((1 / BIN_S, 2 / BIN_S))
    assert (first.running, first.waiting, first.usage) == (3, 2, 0.25)
    assert (third.running, third.waiting, third.usage) == (0, 0, 0.0)


def test_a_long_run_has_no_more_parts_than_a_page_can_show() -> None:
    made = Use()
    for second in range(0, 7200, 60):
        made.stepped(float(second), 30.0, steps=1000)
    figures = figures_of([record(0.0, 1.0, 7200.0)], {"b0:1": made}, Goals())
    parts = figures.instances["b0:1"].over_time
    assert len(parts) <= MOST_MOMENTS
    assert all(part.decode_use == pytest.approx(0.5, abs=0.01) for part in parts)
