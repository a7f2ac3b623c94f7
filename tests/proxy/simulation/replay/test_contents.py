"""Two blocks have one name exactly if the workload says that they hold the same."""

from hypothesis import given
from hypothesis import strategies as st

from kvevents import KEY_BITS, BlockRemoved, Event
from proxy.simulation.replay.contents import GivenKeys, NamedContents, Names
from proxy.simulation.replay.job import Job
from proxy.traces.workload import TraceRequest


def names_of(names: Names, tokens: int, blocks: tuple[int, ...], block_tokens: int = 12) -> list[int]:
    listed: list[int] = names.of_prompt(TraceRequest(0.0, tokens, 1, blocks, block_tokens)).tolist()
    return listed


@given(
    tokens=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    shared=st.integers(0, 5),
    size=st.sampled_from([1, 4, 5, 12, 16, 24]),
)
def test_blocks_within_the_shared_part_have_one_name_and_others_do_not(
    tokens: tuple[int, int], shared: int, size: int
) -> None:
    names = Names(size)
    prompts = [tuple(range(shared)) + tuple(range(10 * who, 10 * who + 5 - shared)) for who in (1, 2)]
    first, second = (names_of(names, n, blocks) for n, blocks in zip(tokens, prompts, strict=True))
    assert [len(first), len(second)] == [n // size for n in tokens]
    same = min(shared * 12, *tokens) // size
    assert first[:same] == second[:same]
    assert len({*first, *second}) == len(first) + len(second) - same
    assert all(0 < name < 1 << KEY_BITS for name in (*first, *second))


def test_models_share_nothing() -> None:
    names = Names(4)
    asked = [TraceRequest(0.0, 12, 1, (7,), 12, model=model) for model in (None, "a", "b", "a")]
    plain, a, b, again = (tuple(names.of_prompt(request).tolist()) for request in asked)
    assert len({plain, a, b}) == 3
    assert a == again


def test_keys_of_blocks_of_another_size_are_those_of_the_same_prompt() -> None:
    names = Names(12)
    keys = GivenKeys(names)
    long, short = (TraceRequest(0.0, tokens, 1, (1, 2, 3)[: tokens // 12], 12) for tokens in (36, 24))
    prompts = [keys.prompt(request, names.of_prompt(request)) for request in (long, short)]
    by_four = [keys.prompt_keys(prompt, 4).tolist() for prompt in prompts]
    assert [len(each) for each in by_four] == [9, 6]
    assert by_four[0][:6] == by_four[1]
    assert keys.prompt_keys(prompts[0], 12).tolist() == names.of_prompt(long).tolist()


def test_tokens_beyond_the_named_blocks_are_nobody_elses() -> None:
    names = Names(4)
    contents = NamedContents(names)
    jobs = [Job("a", 12, 1, names_of(names, 12, (7,), 8)), Job("b", 12, 1, names_of(names, 12, (7,), 8))]
    for job in jobs:
        contents.name_blocks(job)
    first, second = (job.hashes for job in jobs)
    assert first[:2] == second[:2]
    assert first[2] != second[2]


def test_copies_that_are_removed_together_are_one_event() -> None:
    contents, events = NamedContents(Names(4)), list[Event]()
    contents.removed([5, 6], events)
    contents.stored(Job("a", 4, 1, [9]), 0, 1, events)
    contents.removed([7], events)
    assert [event.block_hashes for event in events if isinstance(event, BlockRemoved)] == [[5, 6], [7]]


def test_nobody_is_told_where_nobody_hears() -> None:
    contents, events = NamedContents(Names(4), told=False), list[Event]()
    contents.removed([5], events)
    contents.stored(Job("a", 4, 1, [9]), 0, 1, events)
    assert events == []
