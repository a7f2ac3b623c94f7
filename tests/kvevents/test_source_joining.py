"""A source that joins, early or late, ends up with what the engine has, and probes find what got lost at the
end."""

from typing import Any

from kvevents.source import Source
from kvevents.source_events import (
    Apply,
    AskReplay,
    Cleared,
    Connected,
    Damage,
    Damaged,
    Disconnected,
    GapSeen,
    ProbeDue,
    ReplayDone,
    Retire,
    RetireReason,
)
from tests.kvevents.transcripts import (
    DEADLINE,
    EXACT,
    MARKER,
    PARTIAL,
    UNKNOWN,
    apply,
    exact,
    heard,
    live,
    msg,
    play,
    quietly,
    replayed,
)


def test_joining_an_engine_that_has_published_nothing() -> None:
    play(
        Source(can_replay=True),
        [
            (Connected(), [AskReplay(0)]),
            (MARKER, [ReplayDone(0, complete=True), EXACT]),
            (live(0), apply(0)),
            (live(1), apply(1)),
        ],
    )


def test_joining_late_applies_what_is_replayed_before_what_is_live() -> None:
    play(
        Source(can_replay=True),
        [
            (Connected(), [AskReplay(0)]),
            (replayed(0), apply(0)),
            (live(2), []),
            (replayed(1), apply(1)),
            (live(3), []),
            (replayed(2), apply(2)),
            (MARKER, [ReplayDone(3, complete=True), *apply(3), EXACT]),
            (live(4), apply(4)),
        ],
    )


def test_live_copies_of_replayed_batches_may_come_after_the_replay() -> None:
    play(
        quietly(Source(can_replay=True), Connected(), *(replayed(n) for n in range(5))),
        [
            (live(2), []),
            (MARKER, [ReplayDone(5, complete=True), EXACT]),
            (live(3), []),
            (live(4), []),
            (live(5), apply(5)),
        ],
    )


def test_a_wrapped_buffer_is_what_is_left() -> None:
    play(
        Source(can_replay=True),
        [
            (Connected(), [AskReplay(0)]),
            (replayed(70), apply(70)),
            (replayed(71), apply(71)),
            (MARKER, [ReplayDone(2, complete=True), PARTIAL]),
            (live(72), apply(72)),
            (ProbeDue(), [AskReplay(72)]),
            (replayed(72), []),
            (MARKER, [ReplayDone(0, complete=True)]),
        ],
    )


def test_a_reset_leaves_nothing_unknown() -> None:
    source = Source(can_replay=True)
    play(
        source,
        [
            (Connected(), [AskReplay(0)]),
            (replayed(70), apply(70)),
            (MARKER, [ReplayDone(1, complete=True), PARTIAL]),
            (live(71), apply(71)),
            (Cleared(), [EXACT]),
            (live(72), apply(72)),
            (Damaged(Damage.MISSING), [PARTIAL]),
            (live(73), apply(73)),
            (Cleared(), [EXACT]),
            (live(75), [GapSeen(1), AskReplay(73), UNKNOWN]),
            (replayed(75), [Retire(RetireReason.GAP), *apply(75)]),
            (MARKER, [ReplayDone(1, complete=True), PARTIAL]),
        ],
    )


def test_a_reset_of_a_process_nothing_was_heard_of_proves_nothing() -> None:
    play(Source(can_replay=False), [(Cleared(), []), (Connected(), []), (live(5), [*apply(5), PARTIAL])])


def test_after_a_reset_an_unanswered_replay_need_not_be_asked_for_again() -> None:
    source = Source(can_replay=True)
    quietly(source, Connected(), live(4), DEADLINE, DEADLINE, DEADLINE)
    assert source.incomplete
    quietly(source, Cleared())
    assert not source.incomplete
    play(source, [(ProbeDue(), [AskReplay(4)])])


def test_batches_published_between_replay_and_subscription_are_asked_for() -> None:
    play(
        quietly(Source(can_replay=True), Connected(), replayed(0), live(3)),
        [
            (MARKER, [ReplayDone(1, complete=True), AskReplay(0)]),
            (replayed(0), []),
            (replayed(1), apply(1)),
            (replayed(2), apply(2)),
            (replayed(3), apply(3)),
            (MARKER, [ReplayDone(3, complete=True), EXACT]),
            (live(4), apply(4)),
        ],
    )


def test_a_probe_finds_what_was_lost_at_the_end() -> None:
    play(
        exact(5),
        [
            (ProbeDue(), [AskReplay(5)]),
            (ProbeDue(), []),
            (replayed(5), []),
            (replayed(6), apply(6)),
            (MARKER, [ReplayDone(1, complete=True)]),
        ],
    )


def test_live_copies_may_come_after_a_probe_of_a_young_connection() -> None:
    whole = quietly(Source(can_replay=True), Connected(), *(replayed(n) for n in range(5)), MARKER)
    play(
        whole,
        [
            (ProbeDue(settling=True), [AskReplay(4)]),
            (replayed(4), []),
            (MARKER, [ReplayDone(0, complete=True)]),
            (live(3), []),
            (live(4), []),
            (live(5), apply(5)),
        ],
    )


def test_a_probe_without_answer_changes_nothing() -> None:
    play(
        exact(5),
        [
            (ProbeDue(), [AskReplay(5)]),
            (live(6), []),
            (DEADLINE, [ReplayDone(0, complete=False), *apply(6)]),
            (ProbeDue(), [AskReplay(6)]),
            (live(9), []),
            (DEADLINE, [ReplayDone(0, complete=False), AskReplay(6), UNKNOWN]),
        ],
    )


def test_no_probe_without_a_connection_or_a_replay_endpoint() -> None:
    play(quietly(exact(5), Disconnected()), [(ProbeDue(), [])])
    play(heard(5), [(ProbeDue(), [])])


def test_actions_and_events_are_plain_values() -> None:
    values: list[Any] = [live(1), Apply(msg(1)), AskReplay(0), Retire(RetireReason.GAP)]
    assert len(set(values)) == 4
