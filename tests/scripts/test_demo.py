"""The demo's comparison is counted as an engine counts."""

import pytest

from scripts.workshop.demo.chats import CHATS, arrivals
from scripts.workshop.demo.round_robin import RoundRobin
from scripts.workshop.demo.screen import Screen

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


def test_the_cheapest_is_marked_and_what_has_no_price_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    cached: dict[str, int | None] = {"d-0": 128, "d-1": None, "d-2": 0}
    screen.decision("decode", {"d-0": 12.34, "d-1": 9.0, "d-2": None}, cached)
    screen.decision("decode", dict.fromkeys(cached), cached)
    screen.whole("d-1")
    priced, unpriced, whole = capsys.readouterr().out.splitlines()
    assert " d-0: 128 cached, cost 12.3  >d-1: unknown, cost 9.0   d-2: 0 cached" in priced
    assert ">" not in unpriced
    assert "tie" not in unpriced
    assert "d-1" in whole
