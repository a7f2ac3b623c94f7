"""A prompt that was written into blocks is read back as it was, whatever the chunks and block sizes, and one
wrong block changes what the engine says.
"""

from hypothesis import given
from hypothesis import strategies as st

from proxy.simulation.engine.memory import Content, Memory, advance, initial_state

START = initial_state("tiny", None)
tokens = st.lists(st.integers(0, 4095), min_size=1, max_size=40)


def written(prompt: list[int], block_size: int, cuts: list[int] | None = None) -> tuple[Memory, list[int]]:
    """A memory with a prompt in it, computed in chunks, and the block table."""
    memory = Memory(block_size)
    table = [7 + 3 * i for i in range(-(-len(prompt) // block_size))]
    state, start = START, 0
    for end in [*(cuts or []), len(prompt)]:
        state = memory.write(table, start, prompt[start:end], state)
        start = end
    return memory, table


@given(tokens, st.integers(1, 9), st.data())
def test_what_is_read_back_is_the_prompt_however_it_was_cut(
    prompt: list[int], block_size: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(prompt)), max_size=3)))
    memory, table = written(prompt, block_size, cuts)
    for length in range(len(prompt) + 1):
        assert memory.state(table, length, START) == advance(START, prompt[:length])


@given(tokens, st.integers(1, 9), st.integers(1, 9))
def test_block_sizes_do_not_matter(prompt: list[int], one: int, other: int) -> None:
    first, second = written(prompt, one), written(prompt, other)
    assert first[0].state(first[1], len(prompt), START) == second[0].state(second[1], len(prompt), START)


@given(st.lists(st.integers(0, 4095), min_size=8, max_size=24), st.data())
def test_one_wrong_block_anywhere_changes_the_context(prompt: list[int], data: st.DataObject) -> None:
    memory, table = written(prompt, 4)
    right = memory.state(table, len(prompt), START)
    index = data.draw(st.integers(0, len(table) - 1))
    # The same tokens in another context are another KV.
    wrong = Content.from_wire((START + 1, memory.read(table[index]).tokens))
    memory.replace(table[index], wrong)
    assert memory.state(table, len(prompt), START) != right


@given(tokens)
def test_a_transfer_copies_everything(prompt: list[int]) -> None:
    memory, table = written(prompt, 4)
    other = Memory(4)
    for block in table:
        other.replace(block + 100, Content.from_wire(memory.read(block).to_wire()))
    moved = [block + 100 for block in table]
    assert other.state(moved, len(prompt), START) == advance(START, prompt)


def test_recomputing_the_last_token_changes_nothing() -> None:
    prompt = list(range(10))
    memory, table = written(prompt, 4)
    state = memory.write(table, 9, prompt[9:], memory.state(table, 9, START))
    assert state == advance(START, prompt)
    assert memory.state(table, 10, START) == state


def test_models_and_adapters_say_different_things() -> None:
    assert len({initial_state(*who) for who in [("tiny", None), ("tiny", "a"), ("other", None)]}) == 3
