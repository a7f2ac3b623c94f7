"""Batches of two processes at one address are never mixed, and a rebuild starts from nothing."""

import pytest

from kvevents.source import Source
from kvevents.source_events import (
    AskReplay,
    Connected,
    Disconnected,
    ProbeDue,
    Rebuild,
    ReplayDone,
    Retire,
    RetireReason,
    State,
    StopReplay,
    Suspected,
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
    play,
    quietly,
    replayed,
)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_number_at_or_below_the_last_is_a_new_process(number: int) -> None:
    source = exact(5)
    actions = source.handle(live(number, "q"))
    if number == 0:
        assert actions == [Retire(RetireReason.NEW_PROCESS), *apply(0, process="q")]
        assert source.state is State.EXACT
        return
    assert actions == [Retire(RetireReason.NEW_PROCESS), AskReplay(0), UNKNOWN]
    play(
        source,
        [
            *((replayed(n, "q"), apply(n, process="q")) for n in range(number + 1)),
            (MARKER, [ReplayDone(number + 1, complete=True), EXACT]),
        ],
    )


def test_the_same_batch_again_is_nothing() -> None:
    play(heard(5), [(live(5), []), (live(6), apply(6))])


def test_a_new_process_without_replay() -> None:
    play(heard(5), [(live(0, "q"), [Retire(RetireReason.NEW_PROCESS), *apply(0, process="q")])])
    play(heard(5), [(live(3, "q"), [Retire(RetireReason.NEW_PROCESS), *apply(3, process="q"), PARTIAL])])


def test_a_reconnection_to_the_same_process_keeps_all() -> None:
    play(
        exact(5),
        [
            (Disconnected(), [UNKNOWN]),
            (Connected(), [AskReplay(5)]),
            (replayed(5), []),
            (replayed(6), apply(6)),
            (live(6), []),
            (MARKER, [ReplayDone(1, complete=True), EXACT]),
            (live(7), apply(7)),
        ],
    )


def test_a_reconnection_to_another_process_with_the_same_numbers() -> None:
    play(
        exact(1),
        [
            (Disconnected(), [UNKNOWN]),
            (Connected(), [AskReplay(1)]),
            (live(2, "q"), []),
            (replayed(1, "q"), [Retire(RetireReason.NEW_PROCESS), AskReplay(0)]),
            *((replayed(n, "q"), apply(n, process="q")) for n in range(3)),
            (MARKER, [ReplayDone(3, complete=True), EXACT]),
        ],
    )


@pytest.mark.parametrize("last", [0, 5])
def test_a_reconnection_to_a_process_that_has_published_less(last: int) -> None:
    play(
        exact(last),
        [
            (Disconnected(), [UNKNOWN]),
            (Connected(), [AskReplay(last)]),
            (MARKER, [Retire(RetireReason.NEW_PROCESS), AskReplay(0)]),
            (MARKER, [ReplayDone(0, complete=True), EXACT]),
            (live(0, "q"), apply(0, process="q")),
        ],
    )


def test_a_reconnection_without_replay_cannot_be_verified() -> None:
    play(
        heard(5),
        [
            (Disconnected(), [UNKNOWN]),
            (Connected(), [Retire(RetireReason.UNVERIFIED)]),
            (live(6), [*apply(6), PARTIAL]),
        ],
    )
    play(
        heard(5),
        [
            (Disconnected(), [UNKNOWN]),
            (Connected(), [Retire(RetireReason.UNVERIFIED)]),
            (live(0, "q"), [*apply(0, process="q"), EXACT]),
        ],
    )


def test_an_unanswered_verification_forgets() -> None:
    play(
        exact(5),
        [
            (Disconnected(), [UNKNOWN]),
            (Connected(), [AskReplay(5)]),
            (live(6), []),
            (DEADLINE, [ReplayDone(0, complete=False), AskReplay(5)]),
            (DEADLINE, [ReplayDone(0, complete=False), AskReplay(5)]),
            (DEADLINE, [ReplayDone(0, complete=False), Retire(RetireReason.UNVERIFIED), *apply(6), PARTIAL]),
        ],
    )


def test_a_lost_connection_ends_the_replay_and_what_waited_for_it() -> None:
    play(
        quietly(Source(can_replay=True), Connected(), replayed(0), live(2)),
        [
            (Disconnected(), [StopReplay()]),
            (replayed(1), []),
            (MARKER, []),
            (Connected(), [AskReplay(0)]),
            (replayed(0), []),
            (replayed(1), apply(1)),
            (replayed(2), apply(2)),
            (MARKER, [ReplayDone(2, complete=True), EXACT]),
        ],
    )


def test_what_waited_when_the_connection_broke_is_not_the_next_processs() -> None:
    play(
        quietly(exact(1), live(9), live(10)),
        [
            (Disconnected(), [StopReplay()]),
            (Connected(), [AskReplay(1)]),
            (replayed(1, "q"), [Retire(RetireReason.NEW_PROCESS), AskReplay(0)]),
            (replayed(0, "q"), apply(0, process="q")),
            (replayed(1, "q"), apply(1, process="q")),
            (MARKER, [ReplayDone(2, complete=True), EXACT]),
        ],
    )


def test_a_suspicion_is_verified() -> None:
    play(
        exact(5),
        [
            (Suspected(), [AskReplay(5), UNKNOWN]),
            (Suspected(), []),
            (replayed(5), []),
            (Suspected(), [AskReplay(5)]),
            (replayed(5), []),
            (MARKER, [ReplayDone(0, complete=True), EXACT]),
        ],
    )


def test_a_suspicion_without_replay_forgets() -> None:
    play(
        heard(5), [(Suspected(), [Retire(RetireReason.UNVERIFIED), UNKNOWN]), (live(6), [*apply(6), PARTIAL])]
    )
    play(Source(can_replay=True), [(Suspected(), [])])


def test_a_rebuild_forgets_at_once_and_starts_from_the_first_batch() -> None:
    play(
        exact(2),
        [
            (Rebuild(replay=True), [Retire(RetireReason.REBUILD), AskReplay(0), UNKNOWN]),
            (live(3), []),
            (replayed(0), apply(0)),
            (replayed(1), apply(1)),
            (replayed(2), apply(2)),
            (MARKER, [ReplayDone(3, complete=True), *apply(3), EXACT]),
        ],
    )


def test_a_rebuild_takes_the_place_of_a_replay_that_runs() -> None:
    play(
        quietly(exact(1), ProbeDue(), live(2)),
        [
            (Rebuild(replay=True), [Retire(RetireReason.REBUILD), AskReplay(0), UNKNOWN]),
            (replayed(0), apply(0)),
            (replayed(1), apply(1)),
            (MARKER, [ReplayDone(2, complete=True), *apply(2), EXACT]),
        ],
    )


@pytest.mark.parametrize("can_replay", [True, False])
def test_a_rebuild_without_replay_keeps_its_place_and_is_partial_from_then_on(can_replay: bool) -> None:
    source = exact(1) if can_replay else quietly(Source(can_replay=False), Connected(), live(0), live(1))
    play(
        source,
        [
            (Rebuild(replay=not can_replay), [Retire(RetireReason.REBUILD), PARTIAL]),
            (live(1), []),
            (live(2), apply(2)),
        ],
    )


def test_a_rebuild_while_disconnected_waits_for_the_connection() -> None:
    play(
        quietly(exact(5), Disconnected()),
        [
            (Rebuild(replay=False), [Retire(RetireReason.REBUILD)]),
            (Connected(), [AskReplay(0)]),
            (replayed(0), apply(0)),
            (MARKER, [ReplayDone(1, complete=True), EXACT]),
        ],
    )
