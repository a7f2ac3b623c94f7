"""What is missing between two batches is asked for; if it cannot be had, what is known is forgotten."""

from kvevents.source_events import (
    AskReplay,
    Connected,
    Disconnected,
    GapSeen,
    ReplayDone,
    Retire,
    RetireReason,
)
from tests.kvevents.transcripts import (
    EXACT,
    MARKER,
    PARTIAL,
    UNKNOWN,
    apply,
    exact,
    heard,
    live,
    play,
    replayed,
)


def test_a_gap_is_filled() -> None:
    play(
        exact(5),
        [
            (live(9), [GapSeen(3), AskReplay(5), UNKNOWN]),
            (live(10), []),
            (replayed(5), []),
            *((replayed(n), apply(n)) for n in (6, 7, 8, 9)),
            (MARKER, [ReplayDone(4, complete=True), *apply(10), EXACT]),
        ],
    )


def test_a_gap_the_buffer_has_outgrown_starts_over_with_what_is_left() -> None:
    play(
        exact(5),
        [
            (live(90), [GapSeen(84), AskReplay(5), UNKNOWN]),
            (replayed(80), [Retire(RetireReason.GAP), *apply(80)]),
            *((replayed(n), apply(n)) for n in range(81, 91)),
            (MARKER, [ReplayDone(11, complete=True), PARTIAL]),
            (live(91), apply(91)),
        ],
    )


def test_a_buffer_that_begins_right_after_our_last_batch_proves_nothing() -> None:
    play(
        exact(5),
        [
            (live(8), [GapSeen(2), AskReplay(5), UNKNOWN]),
            (replayed(6), [Retire(RetireReason.GAP), *apply(6)]),
            (replayed(7), apply(7)),
            (replayed(8), apply(8)),
            (MARKER, [ReplayDone(3, complete=True), PARTIAL]),
        ],
    )


def test_a_gap_that_turns_out_a_new_process() -> None:
    play(
        exact(5),
        [
            (live(8, "q"), [GapSeen(2), AskReplay(5), UNKNOWN]),
            (replayed(5, "q"), [Retire(RetireReason.NEW_PROCESS), AskReplay(0)]),
            *((replayed(n, "q"), apply(n, process="q")) for n in range(9)),
            (MARKER, [ReplayDone(9, complete=True), EXACT]),
            (live(9, "q"), apply(9, process="q")),
        ],
    )


def test_a_gap_without_replay_retires() -> None:
    play(
        heard(5),
        [
            (live(8), [GapSeen(2), Retire(RetireReason.GAP), *apply(8), PARTIAL]),
            (live(9), apply(9)),
        ],
    )


def test_a_gap_while_the_connection_is_down_waits_for_the_next() -> None:
    play(
        exact(5),
        [
            (Disconnected(), [UNKNOWN]),
            (live(6), apply(6)),
            (live(9), [GapSeen(2)]),
            (Connected(), [AskReplay(6)]),
            (replayed(6), []),
            *((replayed(n), apply(n)) for n in (7, 8, 9)),
            (MARKER, [ReplayDone(3, complete=True), EXACT]),
        ],
    )
