"""Transcripts: a source that goes on from a checkpoint believes it once the process behind the address is
proven."""

import pytest

from kvevents.sequence import position
from kvevents.source import Source
from kvevents.source_events import (
    AskReplay,
    Checkpoint,
    Connected,
    Disconnected,
    GapSeen,
    ProbeDue,
    Proven,
    ReplayDone,
    Retire,
    RetireReason,
    State,
    StateChanged,
    StopReplay,
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


def checkpoint(number: int, *, since_start: bool = True, incomplete: bool = False) -> Checkpoint:
    last = msg(number)
    return Checkpoint(position(number, last.payload), since_start, incomplete)


def resumed(number: int, *, since_start: bool = True) -> Source:
    source = Source(can_replay=True, resume=checkpoint(number, since_start=since_start))
    assert source.state is State.UNKNOWN
    return source


@pytest.mark.parametrize(("since_start", "told"), [(True, EXACT), (False, PARTIAL)])
def test_the_same_process_is_proven_and_what_it_did_meanwhile_is_applied(
    since_start: bool, told: StateChanged
) -> None:
    play(
        resumed(7, since_start=since_start),
        [
            (Connected(), [AskReplay(7)]),
            (live(9), []),
            (replayed(7), [Proven()]),
            (replayed(8), apply(8)),
            (MARKER, [ReplayDone(1, complete=True), *apply(9), told]),
            (live(10), apply(10)),
        ],
    )


def test_an_idle_process_is_proven_by_its_last_batch_alone() -> None:
    source = resumed(7)
    play(
        source,
        [
            (Connected(), [AskReplay(7)]),
            (replayed(7), [Proven()]),
            (MARKER, [ReplayDone(0, complete=True), EXACT]),
        ],
    )
    assert source.checkpoint == checkpoint(7)


def test_another_process_that_has_come_further_is_found_out() -> None:
    play(
        resumed(1),
        [
            (Connected(), [AskReplay(1)]),
            (replayed(1, "q"), [Retire(RetireReason.NEW_PROCESS), AskReplay(0)]),
            (replayed(0, "q"), apply(0, process="q")),
            (replayed(1, "q"), apply(1, process="q")),
            (MARKER, [ReplayDone(2, complete=True), EXACT]),
        ],
    )


def test_another_process_that_has_not_come_so_far_is_found_out() -> None:
    play(
        resumed(7),
        [
            (Connected(), [AskReplay(7)]),
            (live(2, "q"), []),
            (MARKER, [Retire(RetireReason.NEW_PROCESS), AskReplay(0)]),
            (replayed(0, "q"), apply(0, process="q")),
            (replayed(1, "q"), apply(1, process="q")),
            (replayed(2, "q"), apply(2, process="q")),
            (MARKER, [ReplayDone(3, complete=True), EXACT]),
        ],
    )


def test_beyond_the_replay_buffer_nothing_can_be_proven_and_what_was_known_is_forgotten() -> None:
    play(
        resumed(7),
        [
            (Connected(), [AskReplay(7)]),
            (replayed(9), [Retire(RetireReason.GAP), *apply(9)]),
            (replayed(10), apply(10)),
            (MARKER, [ReplayDone(2, complete=True), PARTIAL]),
        ],
    )


def test_even_the_very_next_batch_does_not_prove_it() -> None:
    play(
        resumed(7),
        [
            (Connected(), [AskReplay(7)]),
            (replayed(8, "q"), [Retire(RetireReason.GAP), *apply(8, process="q")]),
            (MARKER, [ReplayDone(1, complete=True), PARTIAL]),
        ],
    )


def test_who_does_not_answer_is_not_believed() -> None:
    source = resumed(7)
    play(
        source,
        [
            (Connected(), [AskReplay(7)]),
            (live(8), []),
            (DEADLINE, [ReplayDone(0, complete=False), AskReplay(7)]),
            (DEADLINE, [ReplayDone(0, complete=False), AskReplay(7)]),
            (DEADLINE, [ReplayDone(0, complete=False), Retire(RetireReason.UNVERIFIED), *apply(8), PARTIAL]),
        ],
    )
    assert source.checkpoint is not None
    assert source.checkpoint.incomplete


def test_without_a_replay_endpoint_nothing_can_be_proven() -> None:
    source = Source(can_replay=False, resume=checkpoint(7))
    play(source, [(Connected(), [Retire(RetireReason.UNVERIFIED)]), (live(8), [*apply(8), PARTIAL])])
    assert source.checkpoint is None
    assert heard(3).checkpoint is None


def test_a_connection_lost_in_the_middle_proves_nothing() -> None:
    play(
        resumed(7),
        [
            (Connected(), [AskReplay(7)]),
            (Disconnected(), [StopReplay()]),
            (live(8, "q"), []),
            (Connected(), [AskReplay(7)]),
            (replayed(7, "q"), [Retire(RetireReason.NEW_PROCESS), AskReplay(0)]),
        ],
    )


def test_proof_outlives_the_connection() -> None:
    play(
        resumed(7),
        [
            (Connected(), [AskReplay(7)]),
            (replayed(7), [Proven()]),
            (Disconnected(), [StopReplay()]),
            (Connected(), [AskReplay(7)]),
            (replayed(7), []),
            (replayed(8), apply(8)),
            (MARKER, [ReplayDone(1, complete=True), EXACT]),
        ],
    )


def test_until_it_is_proven_there_is_no_new_checkpoint() -> None:
    source = resumed(7)
    assert source.checkpoint is None
    quietly(source, Connected())
    assert source.checkpoint is None
    quietly(source, replayed(7), replayed(8))
    assert source.checkpoint == checkpoint(8)


def test_a_checkpoint_is_how_far_the_index_was_changed() -> None:
    assert Source(can_replay=True).checkpoint is None
    source = exact(3)
    assert source.checkpoint == checkpoint(3)
    quietly(source, live(4))
    assert source.checkpoint == checkpoint(4)
    play(source, [(live(6), [GapSeen(1), AskReplay(4), UNKNOWN])])
    assert source.checkpoint == checkpoint(4)  # what waits was not applied
    quietly(source, Disconnected())
    assert source.checkpoint == checkpoint(4)
    quietly(source, Connected(), replayed(4, "q"))
    assert source.checkpoint is None


def test_a_rebuilding_that_was_due_is_still_due() -> None:
    source = Source(can_replay=True, resume=checkpoint(7, since_start=False, incomplete=True))
    play(
        source,
        [
            (Connected(), [AskReplay(7)]),
            (replayed(7), [Proven()]),
            (MARKER, [ReplayDone(0, complete=True), PARTIAL]),
            (ProbeDue(), [AskReplay(0)]),
            (replayed(0), [Retire(RetireReason.REBUILD), *apply(0), StateChanged(State.EXACT)]),
        ],
    )
