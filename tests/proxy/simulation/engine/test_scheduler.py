"""What the model engine computes in each step: chunks, hits, waits and preemptions, as vLLM's scheduler plans
them.
"""

from collections.abc import Iterable

import pytest

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored, Event
from proxy.simulation import EngineModel, EngineShape
from proxy.simulation.engine.latency import Linear
from proxy.simulation.engine.request import Status
from proxy.simulation.engine.text import Voice
from proxy.simulation.engine.values import Step
from tests.proxy.simulation.driving import EOS, model, request, run, say, step

LONG = range(300, 340)  # ten blocks of four


def chunks(begun: Step | None) -> list[tuple[str, int, int]]:
    assert begun is not None
    return [(c.request.id, c.start, c.count) for c in begun.plan.chunks]


def transcript(engine: EngineModel) -> list[list[tuple[str, int, int]]]:
    """The chunks of every step until all requests are served."""
    steps = []
    while engine.unfinished:
        begun = engine.begin_step(0.0)
        steps.append(chunks(begun))
        assert begun is not None
        engine.end_step(begun, 0.0)
    return steps


def stored(events: Iterable[Event]) -> list[int]:
    return [len(e.block_hashes) for e in events if isinstance(e, BlockStored)]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    engine = model(max_batched_tokens=16)
    engine.add(request("long", LONG))
    assert transcript(engine) == [[("long", 0, 16)], [("long", 16, 16)], [("long", 32, 8)]]


def test_running_requests_come_before_new_ones() -> None:
    engine = model(max_batched_tokens=8)
    engine.add(request("first", range(300, 306), max_tokens=3))
    engine.add(request("second", range(400, 410), max_tokens=1))
    assert transcript(engine) == [
        [("first", 0, 6), ("second", 0, 2)],
        [("first", 6, 1), ("second", 2, 7)],
        [("first", 7, 1), ("second", 9, 1)],
    ]


def test_the_number_of_sequences_is_limited() -> None:
    engine = model(max_sequences=1)
    engine.add(request("first", [300], max_tokens=2))
    engine.add(request("second", [301], max_tokens=1))
    assert engine.scheduler.waiting == 2
    step(engine)
    assert (len(engine.scheduler.running), engine.scheduler.waiting) == (1, 1)
    assert transcript(engine) == [[("first", 1, 1)], [("second", 0, 1)]]


def test_a_batch_has_few_adapters_and_others_are_admitted_before_those_that_wait_for_a_slot() -> None:
    engine = model(max_loras=1)
    engine.add(request("a", [300], max_tokens=3, lora="alpha"))
    engine.add(request("b", [301], lora="beta"))
    engine.add(request("none", [302]))
    engine.add(request("a again", [303], lora="alpha"))
    assert transcript(engine) == [
        [("a", 0, 1), ("none", 0, 1), ("a again", 0, 1)],
        [("a", 1, 1)],
        [("a", 2, 1)],
        [("b", 0, 1)],
    ]


def test_a_request_of_the_same_step_hits_what_is_being_computed() -> None:
    engine = model()
    engine.add(request("first", LONG))
    engine.add(request("second", [*LONG, 1000]))
    assert transcript(engine) == [[("first", 0, 40), ("second", 40, 1)]]
    assert stored(engine.take_events()) == [10]


def test_at_least_the_last_token_is_computed_and_its_block_copied() -> None:
    engine = model()
    assert stored(run(engine, request("first", LONG))) == [10]
    again = request("again", LONG)
    assert stored(run(engine, again)) == [1]
    assert again.local_hit == 36
    longer = request("longer", [*LONG, 7])
    assert run(engine, longer) == []
    assert longer.local_hit == 40


def test_generated_tokens_fill_blocks_that_the_next_turn_hits() -> None:
    engine = model()
    first = request("first", range(300, 306), max_tokens=7)
    assert stored(run(engine, first)) == [1, 1, 1]
    assert len(first.tokens) == 13
    turn = request("turn", [*first.tokens, 900, 901])
    run(engine, turn)
    # The last token of the answer was never put through the model: its block was not full.
    assert turn.local_hit == 12


def test_salt_and_adapter_keep_caches_apart() -> None:
    engine = model()
    run(engine, request("plain", LONG))
    for fields in ({"cache_salt": "s"}, {"lora": "a", "lora_id": 1}, {"lora": "a", "cache_salt": "s"}):
        other = request(str(fields), [*LONG, 9], **fields)
        assert stored(run(engine, other)) == [10]
        assert other.local_hit == 0
        again = request(f"{fields} again", [*LONG, 9], **fields)
        run(engine, again)
        assert again.local_hit == 40


def test_extra_keys_stand_where_vllm_puts_them() -> None:
    engine = model()
    [event] = run(engine, request("r", range(300, 308), lora="a", lora_id=1, cache_salt="s"))
    assert isinstance(event, BlockStored)
    assert event.extra_keys == [["a", "s"], ["a"]]
    [event] = run(engine, request("q", range(300, 308)))
    assert isinstance(event, BlockStored)
    assert event.extra_keys == [None, None]


def test_a_prompt_that_needs_all_blocks_waits_for_them() -> None:
    engine = model(blocks=12)
    engine.add(request("first", LONG, max_tokens=3))
    engine.add(request("second", range(400, 440)))
    step(engine)
    assert [r.id for r in engine.scheduler.running] == ["first"]
    events = run(engine)
    removed = [e for e in events if isinstance(e, BlockRemoved)]
    assert len(removed) == 9
    assert engine.stats.preemptions == 0


def test_the_youngest_is_preempted_and_says_the_same_in_the_end() -> None:
    roomy, tight = model(), model(blocks=7)
    prompts = {"old": range(300, 308), "young": range(400, 408)}
    expected = {name: say(roomy, tokens, 6) for name, tokens in prompts.items()}
    legs = [request(name, tokens, max_tokens=6) for name, tokens in prompts.items()]
    run(tight, *legs)
    assert tight.stats.preemptions > 0
    assert [leg.preemptions > 0 for leg in legs] == [False, True]
    assert {leg.id: list(leg.output) for leg in legs} == expected


def test_a_preempted_request_finds_its_blocks_again() -> None:
    engine = model(blocks=7)
    old = request("old", range(300, 307), max_tokens=3)
    young = request("young", range(400, 412), max_tokens=6)
    engine.add(old)
    engine.add(young)
    while not young.preemptions:
        step(engine)
    assert young.computed == 0
    assert young.table == []
    while not young.table:
        step(engine)
    assert young.computed > 8  # not computed anew
    hit_before = young.local_hit
    run(engine)
    assert young.local_hit == hit_before == 0  # what it reports is its first admission


def test_a_reset_is_announced_with_the_next_step() -> None:
    engine = model()
    run(engine, request("first", LONG))
    assert engine.reset_prefix_cache()
    assert engine.begin_step(0.0) is None
    events = run(engine, request("second", LONG))
    assert [type(e) for e in events] == [AllBlocksCleared, BlockStored]


def test_a_reset_fails_while_blocks_are_in_use() -> None:
    engine = model()
    engine.add(request("first", LONG, max_tokens=2))
    step(engine)
    assert not engine.reset_prefix_cache()
    run(engine)
    assert engine.reset_prefix_cache()


def test_a_full_report_announces_hits_again() -> None:
    engine = model()
    first = run(engine, request("first", LONG))
    again = run(engine, request("again", [*LONG, 5], full_report=True))
    assert first == again


def test_prompt_logprobs_compute_everything() -> None:
    engine = model()
    run(engine, request("first", LONG))
    again = request("again", LONG, reads_cache=False)
    assert stored(run(engine, again)) == [10]
    assert again.local_hit == 0
    assert engine.stats.prefix_queries == 40


@pytest.mark.parametrize(
    ("sampling", "generated", "status"),
    [
        ({}, 1, Status.STOPPED),
        ({"ignore_eos": True}, 5, Status.LENGTH),
        ({"min_tokens": 3}, 4, Status.STOPPED),
    ],
)
def test_an_answer_ends_where_it_should(sampling: dict[str, int], generated: int, status: Status) -> None:
    leg = request("leg", [300], max_tokens=5, sampling={"favourite": EOS, **sampling})
    run(model(), leg)
    assert (leg.generated, leg.status) == (generated, status)


def test_answers_may_end_by_themselves() -> None:
    engine = EngineModel(EngineShape(block_size=4, blocks=600), Voice(range(300, 4000), EOS, 10), "e")
    legs = [request(str(n), [300 + n], max_tokens=200) for n in range(40)]
    run(engine, *legs)
    assert {leg.status for leg in legs} == {Status.STOPPED}
    assert 5 < sum(leg.generated for leg in legs) / len(legs) < 20


def test_a_stop_token_is_a_reason() -> None:
    leg = request("leg", [300], max_tokens=5, sampling={"favourite": 77, "stop_token_ids": (77,)})
    run(model(), leg)
    assert (leg.generated, leg.status, leg.stop_reason) == (1, Status.STOPPED, 77)


def test_the_model_length_is_the_end() -> None:
    leg = request("leg", range(300, 308), max_tokens=50)
    run(model(max_model_len=12), leg)
    assert (len(leg.tokens), leg.status) == (12, Status.LENGTH)


def test_an_aborted_request_leaves_its_blocks_cached() -> None:
    engine = model()
    engine.add(request("gone", LONG, max_tokens=9))
    step(engine)
    engine.abort("gone")
    assert engine.unfinished == 0
    assert engine.cache.pool.usage == 0.0
    after = request("after", [*LONG, 1])
    run(engine, after)
    assert after.local_hit == 40
    assert engine.stats.finished["abort"] == 0


def test_a_step_takes_as_long_as_its_profile_says() -> None:
    engine = model(profile=Linear(a=1.0, b=0.1, s0=2.0, s1=0.5, s2=0.01))
    engine.add(request("first", range(300, 308), max_tokens=2))
    begun = engine.begin_step(0.0)
    assert begun is not None
    assert begun.duration_s == pytest.approx(1.0 + 0.8)
    engine.end_step(begun, 1.8)
    engine.add(request("second", range(400, 404)))
    begun = engine.begin_step(1.8)
    assert begun is not None
    assert begun.duration_s == pytest.approx(1.0 + 0.4 + 2.0 + 0.5 + 0.09)
