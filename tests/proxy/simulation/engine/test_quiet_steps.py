"""Steps that the scheduler calls quiet do nothing but compute one token of each running request."""

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.simulation import EngineModel
from tests.proxy.simulation.driving import model, request, step

BLOCK = 4


def generating(engine: EngineModel, prompt: int, max_tokens: int = 40) -> None:
    engine.add(
        request(f"{prompt} tokens", range(300, 300 + prompt), max_tokens, sampling={"ignore_eos": True})
    )
    step(engine)


def test_steps_between_two_ends_of_blocks_are_quiet() -> None:
    engine = model(block_size=BLOCK)
    generating(engine, 4)
    quiet = []
    for _ in range(9):
        quiet.append(engine.scheduler.quiet_steps())
        step(engine)
    # The prompt is a block. The next token takes a block; of the three behind it the last fills that one.
    assert quiet == [0, 2, 1, 0, 0, 2, 1, 0, 0]


def test_a_request_that_may_be_admitted_makes_the_next_step_loud() -> None:
    engine = model(block_size=BLOCK)
    generating(engine, 5)
    assert engine.scheduler.quiet_steps() == 2
    engine.add(request("new", [300], 4))
    assert engine.scheduler.quiet_steps() == 0


def test_a_request_without_room_waits_through_quiet_steps_until_blocks_are_free() -> None:
    engine = model(block_size=BLOCK, blocks=8)
    generating(engine, 5)
    engine.add(request("large", range(400, 424), 1))
    step(engine)  # tried in vain
    assert engine.scheduler.waiting == 1
    assert engine.scheduler.quiet_steps() == 1
    engine.add(request("behind it", [300], 1))
    step(engine)
    engine.abort("large")
    assert engine.scheduler.quiet_steps() == 0


def test_a_prompt_that_is_computed_in_parts_is_not_quiet() -> None:
    engine = model(block_size=BLOCK, max_batched_tokens=6)
    generating(engine, 5)
    engine.add(request("long", range(400, 420), 4))
    for _ in range(4):
        assert engine.scheduler.quiet_steps() == 0
        step(engine)


@settings(max_examples=150, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 14), min_size=1, max_size=4),
    blocks=st.integers(8, 20),
    budget=st.integers(3, 12),
)
def test_what_is_called_quiet_changes_no_block(prompts: list[int], blocks: int, budget: int) -> None:
    engine = model(block_size=BLOCK, blocks=blocks, max_batched_tokens=budget, max_sequences=3)
    for number, prompt in enumerate(prompts):
        tokens = range(300 + 100 * number, 300 + 100 * number + prompt)
        engine.add(request(str(number), tokens, 9, sampling={"ignore_eos": True}))
    for _ in range(400):
        if not engine.unfinished:
            break
        if engine.scheduler.quiet_steps() and all(r.generated for r in engine.scheduler.running):
            before = [(r.id, r.computed, list(r.table)) for r in engine.scheduler.running]
            engine.take_events()
            begun = engine.begin_step(0.0)
            assert begun is not None
            assert [(c.request.id, c.start, c.count) for c in begun.plan.chunks] == [
                (name, computed, 1) for name, computed, _ in before
            ]
            assert [list(c.request.table) for c in begun.plan.chunks] == [table for *_, table in before]
            assert [begun.plan.admitted, begun.plan.preempted, begun.plan.pulls] == [[], [], []]
            assert engine.take_events() == []
            engine.end_step(begun, 0.0)
        else:
            step(engine)
    assert not engine.unfinished
