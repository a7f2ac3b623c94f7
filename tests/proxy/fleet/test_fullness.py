"""What a full engine gets next, by transcripts of what it said and took, with the room that follows."""

import pytest

from proxy.fleet.fullness import (
    FORGOTTEN_S,
    MAX_PAUSE_S,
    MAX_RETRY_AFTER_S,
    MAX_STEP,
    MIN_RETRY_AFTER_S,
    PAUSE_FIRST_S,
    UNREFUSED_S,
    Fullness,
    retry_after_s,
)


def room(fullness: Fullness, now: float) -> float:
    """How many legs may run there, if all that are meant for it were sent."""
    before, found = fullness.legs, float("inf")
    for fullness.legs in range(200):
        if not fullness.room(now, fullness.legs):
            found = fullness.legs
            break
    fullness.legs = before
    return found


def test_an_engine_that_never_said_it_is_full_gets_any_number() -> None:
    fullness = Fullness()
    assert room(fullness, 0.0) == float("inf")
    assert not fullness.took(9, 0.0)
    assert (fullness.most(0.0), fullness.left_s(0.0)) == (None, 0.0)


def test_for_a_moment_only_what_has_ended_is_replaced_and_then_one_more_is_tried() -> None:
    fullness = Fullness()
    fullness.said(10.0, legs=4, sent_at=9.9)
    assert fullness.left_s(10.0) == pytest.approx(PAUSE_FIRST_S)
    assert room(fullness, 10.0) == room(fullness, 10.0 + PAUSE_FIRST_S * 0.9) == 4
    assert room(fullness, 10.0 + PAUSE_FIRST_S) == 5
    assert fullness.most(10.0) == 4


def test_an_engine_full_of_others_legs_gets_none_for_a_moment() -> None:
    fullness = Fullness()
    fullness.said(10.0, legs=0, sent_at=9.9)
    assert room(fullness, 10.0) == 0
    assert room(fullness, 10.0 + PAUSE_FIRST_S) == 1


@pytest.mark.parametrize(
    ("come_back_s", "kept_s"),
    [(1.5, 1.5), (0.0, MIN_RETRY_AFTER_S), (0.01, MIN_RETRY_AFTER_S), (3600.0, MAX_RETRY_AFTER_S)],
)
def test_a_retry_after_counts_within_bounds_and_no_leg_goes_there_meanwhile(
    come_back_s: float, kept_s: float
) -> None:
    fullness = Fullness()
    fullness.said(10.0, legs=4, sent_at=9.9, come_back_s=come_back_s)
    assert room(fullness, 10.0 + kept_s * 0.99) == 0
    assert room(fullness, 10.0 + kept_s * 1.001) == 5


def test_each_leg_it_takes_lets_twice_as_many_more_follow() -> None:
    fullness = Fullness()
    now = 0.0
    fullness.said(now, legs=0, sent_at=now)
    now = 1.0
    seen = []
    legs = 0
    while fullness.most(now) is not None:
        seen.append(room(fullness, now) - legs)
        legs += 1
        assert fullness.took(legs, now)
    assert seen == [1, 2, 4, 8, 16, 32]
    assert MAX_STEP == 32
    assert room(fullness, now) == float("inf")


def test_a_leg_that_is_refused_closes_the_window_again() -> None:
    fullness = Fullness()
    fullness.said(0.0, legs=0, sent_at=0.0)
    fullness.took(1, 1.0)
    fullness.took(2, 1.0)
    assert room(fullness, 1.0) == 6
    fullness.said(1.1, legs=4, sent_at=1.05)
    assert room(fullness, 1.1) == 4
    assert room(fullness, 2.0) == 5


def test_a_leg_that_is_not_refused_in_time_counts_as_taken() -> None:
    fullness = Fullness()
    for _ in range(2):
        assert not fullness.sent(9.0)
    fullness.said(10.0, legs=2, sent_at=9.9)
    fullness.ended()
    assert not fullness.sent(10.05)  # in place of one that ended
    assert fullness.widens_in_s(10.05) == pytest.approx(0.05)
    assert fullness.sent(11.0)
    assert not fullness.sent(11.2)
    assert room(fullness, 11.0 + UNREFUSED_S * 0.99) == 3
    assert fullness.widens_in_s(11.0) == pytest.approx(UNREFUSED_S)
    assert room(fullness, 11.0 + UNREFUSED_S) == 4
    assert room(fullness, 11.0 + UNREFUSED_S * 2) == 6
    assert fullness.widens_in_s(11.0 + UNREFUSED_S * 2.5) == pytest.approx(UNREFUSED_S / 2)
    assert room(fullness, 11.0 + UNREFUSED_S * 5) == 34
    assert room(fullness, 11.0 + UNREFUSED_S * 6) == float("inf")
    assert fullness.widens_in_s(11.0 + UNREFUSED_S * 6) is None
    fullness.said(11.1, legs=3, sent_at=11.0)
    assert room(fullness, 11.15 + UNREFUSED_S) == 4


def test_a_leg_in_place_of_one_that_ended_widens_nothing_by_being_there_either() -> None:
    fullness = Fullness()
    fullness.sent(9.0)
    fullness.said(10.0, legs=1, sent_at=9.9)
    fullness.ended()
    assert not fullness.sent(11.0)
    assert room(fullness, 12.0 + UNREFUSED_S * 6) == 2


def test_that_it_will_be_forgotten_is_known_in_time_and_who_is_prefilled_for_it_still_tries_it() -> None:
    fullness = Fullness()
    fullness.said(10.0, legs=1, sent_at=9.9)
    assert fullness.widens_in_s(15.0) == pytest.approx(FORGOTTEN_S - 5.0)
    fullness.sent(12.0)
    fullness.sent(12.0)
    assert fullness.widens_in_s(12.0) == pytest.approx(UNREFUSED_S)
    fullness.said(20.0, legs=1, sent_at=19.9)
    fullness.ended()
    late = 20.0 + FORGOTTEN_S
    assert not fullness.room(20.0 + PAUSE_FIRST_S, 2)  # one of the two was not sent yet
    assert fullness.room(late, 1)
    assert fullness.widens_in_s(late) is None
    assert fullness.sent(late)
    assert room(fullness, late) == 2
    assert fullness.widens_in_s(late) == pytest.approx(UNREFUSED_S)
    assert room(fullness, late + UNREFUSED_S) == 3


def test_legs_whose_prefill_hangs_keep_no_others_out_for_long() -> None:
    fullness = Fullness()
    fullness.said(10.0, legs=0, sent_at=9.9)
    over = 10.0 + PAUSE_FIRST_S
    assert fullness.room(over, 0)
    assert not fullness.room(over, 1)  # meant for it, and not sent
    assert fullness.widens_in_s(over, awaited=True) == pytest.approx(UNREFUSED_S)
    assert fullness.room(over + UNREFUSED_S, 1)
    assert not fullness.room(over + UNREFUSED_S, 2)
    assert fullness.room(over + 2 * UNREFUSED_S, 2)
    fullness.sent(12.0)  # what is there counts
    assert not fullness.room(12.0, 1)
    assert fullness.took(1, sent_at=12.0)
    assert fullness.room(12.1, 2)
    assert not fullness.room(12.1, 3)


def test_nothing_widens_by_itself_while_nobody_asks_before_it_is_forgotten() -> None:
    fullness = Fullness()
    assert fullness.widens_in_s(10.0) is None
    fullness.said(10.0, legs=2, sent_at=9.9)
    assert fullness.widens_in_s(15.0) == FORGOTTEN_S - 5.0
    assert room(fullness, 15.0) == 3


def test_a_leg_sent_before_the_engine_was_full_proves_nothing() -> None:
    fullness = Fullness()
    fullness.said(1.0, legs=1, sent_at=0.9)
    assert not fullness.took(3, sent_at=0.5)
    assert room(fullness, 2.0) == 2


def test_a_leg_in_place_of_one_that_ended_is_no_proof_of_more_room() -> None:
    fullness = Fullness()
    fullness.said(1.0, legs=2, sent_at=0.9)
    assert not fullness.took(2, sent_at=1.01)
    assert room(fullness, 2.0) == 3


def test_the_moment_grows_while_it_stays_full_and_starts_anew_when_it_took_one() -> None:
    fullness = Fullness()
    now, pauses = 0.0, []
    for _ in range(7):
        fullness.said(now, legs=0, sent_at=now)
        pauses.append(fullness.left_s(now))
        now += fullness.left_s(now) + 0.01
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, MAX_PAUSE_S, MAX_PAUSE_S])
    fullness.took(1, now)
    fullness.said(now + 0.01, legs=1, sent_at=now)
    assert fullness.left_s(now + 0.01) == pytest.approx(PAUSE_FIRST_S)


def test_many_refused_together_are_one_time_and_the_last_count_holds() -> None:
    fullness = Fullness()
    for n in range(40):  # 48 were sent at once, 8 were taken
        fullness.said(1.0 + n / 100, legs=47 - n, sent_at=0.9)
    assert room(fullness, 1.39) == 8
    assert fullness.left_s(1.39) <= PAUSE_FIRST_S
    assert room(fullness, 1.6) == 9


def test_after_a_while_it_is_forgotten() -> None:
    fullness = Fullness()
    fullness.said(1.0, legs=3, sent_at=0.9)
    assert room(fullness, 1.0 + FORGOTTEN_S * 0.99) == 4
    assert room(fullness, 1.0 + FORGOTTEN_S) == float("inf")
    fullness.said(100.0, legs=3, sent_at=99.9)
    fullness.forget()
    assert room(fullness, 100.0) == float("inf")
    assert fullness.left_s(100.0) == 0.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", None),
        ("-1", None),
        ("٣", None),
        ("9" * 400, 999999999.0),
        ("soon", None),
        ("Mon, 30 Nov 2026 06:00:10 GMT", 10.0),
        ("Monday, 30-Nov-26 06:00:10 GMT", 10.0),
        ("Mon, 30 Nov 2026 05:59:00 GMT", 0.0),
        ("Mon, 99 Nov 2026 06:00:10 GMT", None),
        ("Mon, 30 Nov 99999999999 06:00:10 GMT", None),
    ],
)
def test_the_seconds_that_a_retry_after_asks_for(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, wall_now=1796018400.0) == seconds
