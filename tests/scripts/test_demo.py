"""The demo's comparison is counted as an engine counts."""

import pytest

from scripts.workshop.demo.chats import CHATS, arrivals
from scripts.workshop.demo.round_robin import RoundRobin

BLOCK = 4


@pytest.mark.parametrize(
    ("prompts", "reused"),
    [
        ([10, 10, 10], [0, 0, 8]),  # the third is back at the first instance
        ([8, 8, 8], [0, 0, 4]),  # the last token is always computed
        ([9, 3, 9], [0, 0, 8]),
        ([3, 3, 3], [0, 0, 0]),  # no full block
        ([6, 3, 20, 3, 21], [0, 0, 4, 0, 20]),
    ],
)
def test_round_robin_over_two_instances(prompts: list[int], reused: list[int]) -> None:
    instances = RoundRobin(2, BLOCK)
    assert [instances.serve(range(length)) for length in prompts] == reused


def test_other_tokens_share_nothing() -> None:
    instances = RoundRobin(1, BLOCK)
    assert instances.serve(range(8)) == 0
    assert instances.serve(range(1, 9)) == 0
    assert instances.serve([0, 1, 2, 3, 9, 9, 9, 9]) == 4


def test_every_turn_arrives_once_and_in_its_chats_order() -> None:
    turns = list(arrivals())
    assert turns == list(arrivals())
    for chat in CHATS:
        assert [number for other, number in turns if other is chat] == list(range(len(chat.says)))
