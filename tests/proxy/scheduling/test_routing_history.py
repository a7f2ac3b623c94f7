"""The history says what a plain list of what was sent says, and keeps to its bounds."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from proxy.scheduling.routing_history import Place, RoutingHistory

PLACES: list[Place] = [("a:1", 0), ("a:1", 1), ("b:1", 0)]


def keys_of(tokens: Sequence[int]) -> list[int]:
    """A key stands for all before it."""
    return [int("1" + "".join(map(str, tokens[: n + 1]))) for n in range(len(tokens))]


def matches(sent: list[tuple[Place, list[int]]], asked: Sequence[int]) -> dict[Place, int]:
    """By a list of all that was sent."""
    found: dict[Place, int] = {}
    for place, keys in sent:
        shared = len({*keys} & {*asked})
        if shared:
            found[place] = max(shared, found.get(place, 0))
    return found


TOKENS = st.lists(st.integers(0, 1), max_size=7)


@given(
    st.lists(st.tuples(st.sampled_from(PLACES), TOKENS) | st.sampled_from(["a:1", "b:1"]), max_size=30),
    st.integers(1, 8),
    TOKENS,
)
def test_it_knows_the_latest_prompts(
    course: list[tuple[Place, list[int]] | str], most: int, asked: list[int]
) -> None:
    history = RoutingHistory(max_prompts=most)
    latest: list[tuple[Place, list[int]]] = []
    for step in course:
        if isinstance(step, str):
            history.forget(step)
            latest = [(place, [] if place[0] == step else keys) for place, keys in latest]
        elif step[1]:
            history.sent(step[0], keys_of(step[1]))
            latest = [*latest, (step[0], keys_of(step[1]))][-most:]
        assert history.matches(keys_of(asked)) == matches(latest, keys_of(asked))
        assert len(history) == len(latest) <= most


@given(st.lists(st.tuples(st.sampled_from(PLACES), TOKENS), max_size=30), st.integers(7, 20))
def test_no_more_blocks_are_kept_than_may_be(course: list[tuple[Place, list[int]]], most: int) -> None:
    history = RoutingHistory(max_blocks=most)
    there: list[tuple[Place, list[int]]] = []
    for place, tokens in course:
        history.sent(place, keys_of(tokens))
        there += [(place, keys_of(tokens))] if tokens else []
        there = there[len(there) - len(history) :]
        assert history.blocks == len({key for _, keys in there for key in keys}) <= most
        if tokens:
            assert history.matches(keys_of(tokens))[place] == len(tokens), "the latest is kept"


def test_a_prompt_longer_than_all_that_is_kept_does_no_harm() -> None:
    history = RoutingHistory(max_blocks=10)
    history.sent(PLACES[0], range(1, 30))
    assert (len(history), history.blocks, history.matches(range(1, 30))) == (0, 0, {})


def test_a_branching_prompt_is_kept_once_where_it_is_shared() -> None:
    history = RoutingHistory()
    system = list(range(1, 1001))
    for chat in range(2000, 2100):
        history.sent(PLACES[chat % 2], [*system, chat])
    assert history.blocks == 1100
    assert history.matches([*system, 5]) == {PLACES[0]: 1000, PLACES[1]: 1000}
    assert history.matches([*system[:70], 5]) == {PLACES[0]: 70, PLACES[1]: 70}
