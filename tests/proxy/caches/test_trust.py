"""A rank's index is believed, doubted, rebuilt and believed again: what is seen line by line, and what
follows."""

import pytest

from proxy.caches.trust import (
    MAX_REBUILD_S,
    MISSES_TO_DISTRUST,
    REBUILD_FIRST_S,
    SUSTAINED_HITS,
    WINDOW_HITS,
    Step,
    Trust,
)


class Rank:
    """A rank whose source does what is asked of it at once."""

    def __init__(self) -> None:
        self.trust = Trust()
        self.now = 1000.0
        self.forgotten = 0
        self.known = True
        self.look()

    def look(self) -> Step | None:
        return self.trust.look(self.now, forgotten=self.forgotten, known=self.known)

    def hits(self, right: int) -> set[Step | None]:
        return {self.trust.hit(self.now, promised_too_much=False) for _ in range(right)}

    def miss(self) -> Step | None:
        return self.trust.hit(self.now, promised_too_much=True)

    def lose(self) -> None:
        assert [self.miss() for _ in range(MISSES_TO_DISTRUST)][-1] is Step.LOST

    def rebuild(self) -> None:
        self.forgotten += 1
        assert self.look() is Step.REGAINED


def test_a_few_misses_among_the_last_hits_end_the_trust() -> None:
    rank = Rank()
    for _ in range(MISSES_TO_DISTRUST - 1):
        assert rank.miss() is None
        assert rank.hits(2) == {None}
    assert rank.trust.trusted
    assert rank.miss() is Step.LOST
    assert not rank.trust.trusted
    assert rank.miss() is None  # it is said once


def test_rare_misses_do_not() -> None:
    rank = Rank()
    for _ in range(50):
        assert rank.miss() is None
        rank.hits(WINDOW_HITS // 2)
    assert rank.trust.trusted


def test_a_rank_that_lost_trust_is_replayed_at_once_and_trusted_when_that_is_done() -> None:
    rank = Rank()
    rank.lose()
    assert rank.trust.rebuild_in_s(rank.now) == 0
    assert rank.look() is Step.REPLAY
    assert rank.look() is None
    rank.forgotten, rank.known = 1, False
    assert rank.look() is None  # it is being replayed
    rank.known = True
    assert rank.look() is Step.REGAINED
    assert rank.trust.trusted


def test_a_rebuilt_index_is_on_trial_and_one_miss_ends_it() -> None:
    rank = Rank()
    rank.lose()
    rank.look()
    rank.rebuild()
    rank.hits(WINDOW_HITS - 1)
    assert rank.miss() is Step.LOST


def test_after_the_trial_it_takes_a_few_again() -> None:
    rank = Rank()
    rank.lose()
    rank.look()
    rank.rebuild()
    rank.hits(WINDOW_HITS)
    assert rank.miss() is None


def test_the_next_rebuild_starts_over_and_waits_and_each_after_it_twice_as_long() -> None:
    rank = Rank()
    rank.lose()
    assert rank.look() is Step.REPLAY
    pause_s, pauses = REBUILD_FIRST_S, 0
    while pause_s <= 4 * MAX_REBUILD_S:
        rank.rebuild()
        assert rank.miss() is Step.LOST
        wait_s = min(pause_s, MAX_REBUILD_S)
        assert rank.trust.rebuild_in_s(rank.now) == wait_s
        rank.now += wait_s - 0.001
        assert rank.look() is None
        rank.now += 0.001
        assert rank.look() is Step.START_OVER
        pause_s, pauses = 2 * pause_s, pauses + 1
    assert pauses == 9


def test_a_rebuild_that_shows_no_effect_is_asked_for_again() -> None:
    rank = Rank()
    rank.lose()
    assert rank.look() is Step.REPLAY
    rank.now += REBUILD_FIRST_S
    assert rank.look() is Step.START_OVER


@pytest.mark.parametrize(("hits", "step"), [(SUSTAINED_HITS - 1, None), (SUSTAINED_HITS, Step.REPLAY)])
def test_sustained_exactness_forgives(hits: int, step: Step | None) -> None:
    rank = Rank()
    rank.lose()
    rank.look()
    rank.rebuild()
    rank.hits(hits)
    rank.lose()
    assert rank.look() is step


def test_an_engine_that_was_replaced_begins_with_a_clean_sheet() -> None:
    rank = Rank()
    rank.lose()
    assert rank.look() is Step.REPLAY
    rank.rebuild()
    rank.miss()
    rank.rebuild()  # nobody asked: another process is behind the address
    rank.hits(1)
    assert rank.miss() is None  # not on trial
    assert rank.miss() is None
    assert rank.miss() is Step.LOST
    assert rank.look() is Step.REPLAY


def test_a_rank_that_waits_for_its_rebuild_is_trusted_when_it_is_right_again_and_again() -> None:
    rank = Rank()
    rank.lose()
    rank.look()
    rank.rebuild()
    assert rank.miss() is Step.LOST
    assert rank.hits(WINDOW_HITS - 1) == {None}
    assert rank.trust.hit(rank.now, promised_too_much=False) is Step.REGAINED
    rank.now += MAX_REBUILD_S
    assert rank.look() is None
