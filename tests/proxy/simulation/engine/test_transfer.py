"""Prefill and decode models wired by hand: what a hold is worth and how it ends."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents import BlockStored
from proxy.simulation import EngineModel
from proxy.simulation.engine.request import Status
from proxy.simulation.engine.values import EngineDeadError, Handshake, Heartbeat, Pull, Release
from tests.proxy.simulation.driving import carry, decode, model, prefill, request, run, say, step

PROMPT = range(300, 323)  # five blocks of four and three tokens
OTHER = range(700, 723)


def pair(**shape: Any) -> tuple[EngineModel, EngineModel]:
    """Two engines that have spoken before."""
    p, d = model("p", **shape), model("d", **shape)
    d.peers.met("p")
    return p, d


def test_the_params_are_vllms() -> None:
    p, _ = pair()
    assert prefill(p, "leg", PROMPT) == {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[1, 2, 3, 4, 5, 6]],
        "remote_engine_id": "p",
        "remote_request_id": "leg",
        "remote_host": "host",
        "remote_port": 1,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": 23,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": 0,
    }
    assert p.cache.pool.usage > 0
    assert prefill(p, "again", PROMPT)["remote_prefill_cached_tokens"] == 20


@settings(deadline=None)
@given(st.lists(st.integers(300, 310), min_size=1, max_size=40), st.lists(st.integers(300, 310), max_size=8))
def test_a_pair_says_what_one_engine_says(prompt: list[int], more: list[int]) -> None:
    p, d = pair()
    first = decode(p, d, request("one", prompt, 8, pull=prefill(p, "leg", prompt)))
    assert first == say(model(), prompt)
    turn = [*prompt, *first, *more]
    assert decode(p, d, request("two", turn, 8, pull=prefill(p, "turn", turn))) == say(model(), turn)
    assert (len(p.holds), p.holds.pulled, p.holds.after_expiry) == (0, 2, 0)
    assert p.cache.pool.usage == d.cache.pool.usage == 0.0


def test_decode_computes_nothing_and_announces_what_it_pulled() -> None:
    p, d = pair()
    [at_p] = run(model(), request("plain", PROMPT))
    params = prefill(p, "leg", PROMPT)
    leg = request("leg", PROMPT, 1, pull=params)
    decode(p, d, leg)
    assert d.take_events() == [at_p]
    assert d.stats.prompt_by_source == {"external_kv_transfer": 23, "local_cache_hit": 0, "local_compute": 0}
    assert (d.stats.external_queries, d.stats.external_hits) == (23, 23)
    assert (d.stats.transfers, d.stats.transferred_bytes) == (1, 6 * 4 * 1024)


def test_what_decode_has_cached_is_not_pulled() -> None:
    p, d = pair()
    run(d, request("before", PROMPT))
    params = prefill(p, "leg", PROMPT)
    d.add(request("leg", PROMPT, 4, pull=params))
    assert step(d) == []
    [pull, beat] = d.take_commands(0.0)
    assert isinstance(pull, Pull)
    assert isinstance(beat, Heartbeat)
    assert pull.blocks == (6,)  # the last, partly filled one
    d.pulled("leg", p.serve_pull("leg", pull.blocks))
    run(d)
    assert d.stats.prompt_by_source["local_cache_hit"] == 20
    assert d.stats.prompt_by_source["external_kv_transfer"] == 3


def test_a_hold_read_twice_is_another_prompts_text() -> None:
    p, d = pair()
    params = prefill(p, "leg", PROMPT)
    right = decode(p, d, request("one", PROMPT, 8, pull=params, cache_salt="a"))
    wrong = decode(p, d, request("two", PROMPT, 8, pull=params, cache_salt="b"))
    assert right == say(model(), PROMPT)
    assert wrong != right
    assert p.holds.after_expiry == 1


def test_another_prompts_hold_is_that_prompts_text() -> None:
    p, d = pair()
    prefill(p, "mine", PROMPT)
    theirs = prefill(p, "theirs", OTHER)
    answer = decode(p, d, request("leg", PROMPT, 8, pull=theirs))
    # All but the last token of the context is the other prompt's.
    assert answer == say(model(), [*list(OTHER)[:-1], PROMPT[-1]])
    assert p.holds.ids() == ["mine"]


def test_wrong_kv_is_cached_under_the_right_name() -> None:
    p, d = pair()
    decode(p, d, request("leg", PROMPT, 8, pull=prefill(p, "theirs", OTHER)))
    after = request("after", PROMPT, 8)
    run(d, after)
    assert after.local_hit == 20
    assert list(after.output) != say(model(), PROMPT)


def test_a_lucky_read_is_right_until_the_blocks_are_reused() -> None:
    p, d = pair(lucky_reads=True)
    params = prefill(p, "leg", PROMPT)
    right = say(model(), PROMPT)
    assert decode(p, d, request("one", PROMPT, 8, pull=params, cache_salt="a")) == right
    assert decode(p, d, request("two", PROMPT, 8, pull=params, cache_salt="b")) == right
    run(p, request("fill", range(1000, 1120)))
    assert decode(p, d, request("three", PROMPT, 8, pull=params, cache_salt="c")) != right


def test_an_expired_hold_is_counted_and_its_blocks_are_free() -> None:
    p, d = pair()
    params = prefill(p, "leg", PROMPT, now_s=100.0)
    p.expire(129.9)
    assert len(p.holds) == 1
    assert p.next_deadline_s() == 130.0
    p.expire(130.0)
    assert (len(p.holds), p.holds.expired, p.cache.pool.usage) == (0, 1, 0.0)
    assert decode(p, d, request("late", PROMPT, 8, pull=params)) != say(model(), PROMPT)


def test_a_client_that_leaves_twice_frees_no_block_that_is_written() -> None:
    p, d = pair()
    d.add(request("gone", PROMPT, 4, pull=prefill(p, "leg", PROMPT)))
    step(d)
    for _ in range(2):
        d.abort("gone")
        assert d.cache.pool.usage > 0
    assert Pull in carry(p, d)
    assert d.cache.pool.usage == 0


def test_heartbeats_keep_a_hold_while_decode_is_busy() -> None:
    p, d = pair(max_sequences=1)
    d.add(request("busy", [1, 2], 200))
    step(d)
    params = prefill(p, "leg", PROMPT)
    d.add(request("waits", PROMPT, 4, pull=params))
    for now_s in range(0, 100, 5):
        step(d, float(now_s))
        assert carry(p, d, float(now_s)) == [Heartbeat]
        assert d.next_deadline_s() == now_s + 5
        p.expire(now_s + 4.9)
        assert len(p.holds) == 1
    d.abort("waits")
    assert carry(p, d, 100.0) == [Release]
    assert d.next_deadline_s() is None


def test_a_pull_leaves_a_prompt_in_progress_its_blocks() -> None:
    p, d = model("p"), model("d", blocks=12, max_batched_tokens=8)
    params = prefill(p, "leg", PROMPT)
    d.add(request("long", range(900, 924)))  # six blocks, two of them in the first step
    step(d)
    d.add(request("leg", PROMPT, 4, pull=params))
    step(d)
    assert (d.scheduler.waiting, d.scheduler.deferred) == (1, 0)  # seven are free, but two are spoken for
    while "long" in [r.id for r in d.scheduler]:
        step(d)
    assert d.stats.preemptions == 0
    step(d)
    assert d.scheduler.deferred == 1


def test_holds_survive_what_evicts_everything_else() -> None:
    p, d = pair(blocks=12)
    params = prefill(p, "leg", PROMPT)
    for n in range(5):
        run(p, request(f"other {n}", range(1000 * n, 1000 * n + 15)))
    assert decode(p, d, request("leg", PROMPT, 8, pull=params)) == say(model(), PROMPT)


def test_a_first_word_is_a_handshake_and_waits_for_the_step_after_it() -> None:
    p, d = model("p"), model("d")
    params = prefill(p, "leg", PROMPT)
    d.reject(params)
    [handshake] = d.take_commands(0.0)
    assert isinstance(handshake, Handshake)
    d.reject(params)
    assert d.take_commands(0.0) == [], "it is under way"
    d.peers.met("p")
    assert d.begin_step(0.0) is None
    assert d.take_commands(0.0) == [], "nothing happens by itself"
    run(d, request("another", OTHER))
    assert carry(p, d) == [Release, Release]
    assert (p.holds.released, p.holds.after_expiry) == (1, 1)


def test_a_refusal_is_a_step_itself() -> None:
    p, d = model("p"), model("d")
    for name in ("one", "two"):
        d.reject(prefill(p, name, PROMPT))
        carry(p, d)
    assert p.holds.released == 2


def test_a_handshake_that_fails_is_tried_again() -> None:
    p, d = model("p"), model("d")
    params = prefill(p, "leg", PROMPT)
    d.reject(params)
    d.take_commands(0.0)
    d.peers.missed("p")
    d.reject(params)
    assert carry(p, d) == [Handshake]
    d.reject(params)
    assert carry(p, d) == [Release, Release]


def test_a_pull_is_a_handshake_too() -> None:
    p, d = model("p"), model("d")
    decode(p, d, request("first", PROMPT, 4, pull=prefill(p, "first", PROMPT)))
    d.reject(prefill(p, "second", OTHER))
    assert carry(p, d) == [Release]


def test_a_first_heartbeat_is_a_handshake() -> None:
    p, d = model("p"), model("d", max_sequences=1)
    d.add(request("busy", [1, 2], 200))
    step(d)
    d.add(request("waits", PROMPT, 4, pull=prefill(p, "leg", PROMPT)))
    for now_s, told in ((0.0, Handshake), (5.0, Heartbeat), (10.0, Heartbeat)):
        step(d, now_s)
        assert carry(p, d, now_s) == [told]


def test_a_rejected_decode_leg_releases_its_hold() -> None:
    p, d = pair()
    params = prefill(p, "leg", PROMPT)
    d.reject(params)
    assert carry(p, d) == [Release]
    assert (len(p.holds), p.holds.released, p.holds.expired) == (0, 1, 0)


@pytest.mark.parametrize("when", ["queued", "pulling", "running"])
def test_a_decode_client_that_leaves_frees_both_sides(when: str) -> None:
    p, d = pair()
    params = prefill(p, "leg", PROMPT)
    d.add(request("leg", PROMPT, 50, pull=params))
    if when != "queued":
        assert step(d) == []
    if when == "running":
        carry(p, d)
        step(d)
    d.abort("leg")
    carry(p, d)
    assert len(p.holds) == 0
    assert d.unfinished == 0
    assert p.cache.pool.usage == d.cache.pool.usage == 0.0


def test_a_prefill_client_that_leaves_holds_nothing() -> None:
    p, _ = pair(max_batched_tokens=8)
    p.add(request("leg", PROMPT, hold=True))
    step(p)
    p.abort("leg")
    assert (len(p.holds), p.cache.pool.usage) == (0, 0.0)


def test_a_prefill_leg_that_stops_at_once_is_held_all_the_same() -> None:
    p, d = pair()
    p.add(request("leg", PROMPT, 5, hold=True, sampling={"favourite": 2}))
    [output] = step(p)
    assert output.request.status is Status.STOPPED
    assert output.params is not None
    leg = request("leg", PROMPT, 5, pull=output.params, sampling={"favourite": 2})
    assert decode(p, d, leg) == [2]


def test_a_pull_that_fails_is_an_error_or_computed_here() -> None:
    params = prefill(model("p"), "leg", PROMPT)
    strict, patient = model("d"), model("d", recompute=True)
    for d in (strict, patient):
        d.add(request("leg", PROMPT, 8, pull=params))
        step(d)
    [failed] = strict.pull_failed("leg")
    assert (failed.token, failed.request.status) == (None, Status.FAILED)
    assert strict.cache.pool.usage == 0.0
    assert patient.pull_failed("leg") == []
    events = run(patient)
    assert next(len(e.block_hashes) for e in events if isinstance(e, BlockStored)) == 5
    assert patient.stats.prompt_by_source["local_compute"] == 23
    assert strict.stats.failed_transfers == patient.stats.failed_transfers == 1


@pytest.mark.parametrize("spoil", [{"remote_block_ids": None}, {"remote_block_ids": [[1, 2]]}])
def test_params_without_enough_blocks_kill_the_engine(spoil: dict[str, Any]) -> None:
    p, d = pair()
    d.add(request("leg", PROMPT, 8, pull=prefill(p, "leg", PROMPT) | spoil))
    with pytest.raises(EngineDeadError):
        d.begin_step(0.0)


def test_a_bare_flag_kills_the_engine() -> None:
    d = model()
    d.add(request("leg", PROMPT, 8, pull={"do_remote_prefill": True}))
    with pytest.raises(EngineDeadError):
        d.begin_step(0.0)


def test_params_that_do_not_say_where_wait_for_ever() -> None:
    p, d = pair()
    params = {k: v for k, v in prefill(p, "leg", PROMPT).items() if k != "remote_host"}
    d.add(request("leg", PROMPT, 8, pull=params))
    assert step(d) == []
    assert d.take_commands(0.0) == []
    assert d.begin_step(0.0) is None
    assert (d.scheduler.waiting, d.scheduler.deferred) == (1, 1)


def test_who_computes_everything_lets_the_hold_go() -> None:
    p, d = pair()
    leg = request("leg", PROMPT, 8, pull=prefill(p, "leg", PROMPT), reads_cache=False)
    d.add(leg)
    step(d)
    assert carry(p, d) == [Release]
    run(d)
    assert list(leg.output) == say(model(), PROMPT)
    assert d.stats.prompt_by_source["local_compute"] == len(PROMPT)


def test_every_choice_of_a_prompt_reads_the_hold_and_the_first_ends_it() -> None:
    p, d = pair()
    params = prefill(p, "leg", PROMPT)
    choices = [request(f"{n}", PROMPT, 8, pull=params) for n in range(2)]
    for choice in choices:
        d.add(choice)
    step(d)
    assert carry(p, d).count(Pull) == 2
    run(d)
    assert list(choices[0].output) == say(model(), PROMPT) != list(choices[1].output)
    assert (p.holds.pulled, p.holds.after_expiry) == (1, 1)


def test_without_a_connector_the_params_mean_nothing() -> None:
    plain = model(connector=False)
    leg = request("leg", PROMPT, 8, pull={"do_remote_prefill": True})
    run(plain, leg, request("other", PROMPT, hold=True))
    assert leg.generated == 8
    assert len(plain.holds) == 0
    assert plain.stats.external_queries == 0


def test_preemption_after_a_pull_computes_the_prompt_here() -> None:
    p, d = pair(blocks=10)
    run_alone = say(model(), PROMPT, 12)
    params = prefill(p, "leg", PROMPT)
    d.add(request("old", range(900, 904), 12))
    step(d)
    leg = request("leg", PROMPT, 12, pull=params)
    d.add(leg)
    step(d)
    carry(p, d)
    run(d)
    assert leg.preemptions > 0
    assert list(leg.output) == run_alone
