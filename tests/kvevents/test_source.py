"""Transcripts: what the sockets said, line by line, and what was done about it."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents.decoder import Message
from kvevents.sequence import position
from kvevents.source import Source
from kvevents.source_events import (
    DAMAGED,
    GAP,
    NEW_PROCESS,
    REBUILD,
    UNVERIFIED,
    Action,
    Apply,
    AskReplay,
    Checkpoint,
    Cleared,
    Connected,
    Damage,
    Damaged,
    Disconnected,
    GapSeen,
    Live,
    ProbeDue,
    Rebuild,
    ReplayDone,
    Replayed,
    ReplayEnded,
    Retire,
    SourceEvent,
    State,
    StateChanged,
    StopReplay,
    Suspected,
)

EXACT, PARTIAL, UNKNOWN = (StateChanged(state) for state in (State.EXACT, State.PARTIAL, State.UNKNOWN))
MARKER, DEADLINE = ReplayEnded(marker=True), ReplayEnded(marker=False)


def msg(number: int, process: str = "p") -> Message:
    return Message(b"", number, f"{process}{number}".encode())


def live(number: int, process: str = "p") -> Live:
    return Live(msg(number, process))


def replayed(number: int, process: str = "p") -> Replayed:
    return Replayed(msg(number, process))


def apply(*numbers: int, process: str = "p") -> list[Action]:
    return [Apply(msg(number, process)) for number in numbers]


Transcript = list[tuple[SourceEvent, list[Action]]]


def play(source: Source, transcript: Transcript) -> None:
    for line, (event, actions) in enumerate(transcript):
        assert source.handle(event) == actions, f"line {line}: {event}"


def quietly(source: Source, *events: SourceEvent) -> Source:
    for event in events:
        source.handle(event)
    return source


def exact(up_to: int) -> Source:
    """A source that replays, with everything up to that number applied."""
    source = Source(can_replay=True)
    quietly(source, Connected(), *(replayed(n) for n in range(up_to + 1)), MARKER)
    assert (source.state, source.last_number) == (State.EXACT, up_to)
    return source


def heard(up_to: int) -> Source:
    """As `exact`, without a replay endpoint."""
    source = quietly(Source(can_replay=False), Connected(), *(live(n) for n in range(up_to + 1)))
    assert (source.state, source.last_number) == (State.EXACT, up_to)
    return source


# ---- joining ------------------------------------------------------------------------------------------------


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
            (replayed(75), [Retire(GAP), *apply(75)]),
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


# ---- replays that lose something ----------------------------------------------------------------------------


def test_a_drop_in_the_middle_is_asked_for_again_from_what_was_applied() -> None:
    play(
        Source(can_replay=True),
        [
            (Connected(), [AskReplay(0)]),
            (replayed(0), apply(0)),
            (replayed(1), apply(1)),
            (replayed(5), []),
            (replayed(6), []),
            (MARKER, [ReplayDone(2, complete=False), AskReplay(1)]),
            (replayed(1), []),
            (replayed(2), apply(2)),
            (replayed(3), apply(3)),
            (MARKER, [ReplayDone(2, complete=True), EXACT]),
        ],
    )


def test_a_lost_end_marker_costs_one_more_round() -> None:
    play(
        quietly(Source(can_replay=True), Connected(), replayed(0), replayed(1)),
        [
            (DEADLINE, [ReplayDone(2, complete=False), AskReplay(1)]),
            (replayed(1), []),
            (DEADLINE, [ReplayDone(0, complete=False), EXACT]),
            (live(2), apply(2)),
        ],
    )


def test_a_drop_that_repeats_leaves_doubt_until_something_newer_settles_it() -> None:
    source = quietly(exact(1), live(4))
    play(
        source,
        [
            (replayed(1), []),
            (replayed(3), []),
            (MARKER, [ReplayDone(0, complete=False), Retire(GAP), *apply(4), PARTIAL]),
            (live(5), apply(5)),
        ],
    )


def test_a_drop_that_repeats_with_nothing_live_is_probed_again() -> None:
    source = exact(1)
    play(
        source,
        [
            (ProbeDue(), [AskReplay(1)]),
            (replayed(1), []),
            (replayed(3), []),
            (MARKER, [ReplayDone(0, complete=False), UNKNOWN]),
        ],
    )
    play(quietly(exact(1), ProbeDue(), replayed(1), replayed(3), MARKER), [(live(2), [*apply(2), EXACT])])
    assert source.incomplete
    play(
        source,
        [
            (ProbeDue(), [AskReplay(1)]),
            (replayed(1), []),
            (replayed(2), apply(2)),
            (replayed(3), apply(3)),
            (MARKER, [ReplayDone(2, complete=True), EXACT]),
        ],
    )


def test_no_answer_three_times_means_live_messages_alone_and_a_try_at_every_probe() -> None:
    source = Source(can_replay=True)
    play(
        source,
        [
            (Connected(), [AskReplay(0)]),
            (live(7), []),
            (DEADLINE, [ReplayDone(0, complete=False), AskReplay(0)]),
            (DEADLINE, [ReplayDone(0, complete=False), AskReplay(0)]),
            (DEADLINE, [ReplayDone(0, complete=False), *apply(7), PARTIAL]),
            (live(8), apply(8)),
        ],
    )
    assert source.incomplete
    play(
        source,
        [
            (ProbeDue(), [AskReplay(0)]),
            (DEADLINE, [ReplayDone(0, complete=False)]),
            (live(9), apply(9)),
            (ProbeDue(), [AskReplay(0)]),
            (replayed(0), [Retire(REBUILD), *apply(0), EXACT]),
            *((replayed(n), apply(n)) for n in range(1, 10)),
            (MARKER, [ReplayDone(10, complete=True)]),
        ],
    )
    assert not source.incomplete


def test_live_messages_from_number_0_are_exact_without_any_answer() -> None:
    play(
        quietly(Source(can_replay=True), Connected(), live(0), live(1), DEADLINE, DEADLINE),
        [(DEADLINE, [ReplayDone(0, complete=False), *apply(0, 1), EXACT])],
    )


def test_waiting_messages_are_bounded_and_asked_for_again() -> None:
    source = Source(can_replay=True, max_waiting_bytes=5)
    play(
        source,
        [
            (Connected(), [AskReplay(0)]),
            (replayed(0), apply(0)),
            *((live(n), []) for n in range(1, 5)),
            (MARKER, [ReplayDone(1, complete=True), AskReplay(0)]),
            (replayed(0), []),
            *((replayed(n), apply(n)) for n in range(1, 5)),
            (MARKER, [ReplayDone(4, complete=True), EXACT]),
            (live(5), apply(5)),
        ],
    )


def test_a_probe_during_which_too_much_waits_is_a_doubt_and_no_loss() -> None:
    source = Source(can_replay=True, max_waiting_bytes=5)
    quietly(source, Connected(), replayed(0), MARKER)
    play(
        source,
        [
            (ProbeDue(), [AskReplay(0)]),
            *((live(n), []) for n in (1, 2)),
            (live(3), [UNKNOWN]),
            (replayed(0), []),
            (MARKER, [ReplayDone(0, complete=True), AskReplay(0)]),
            (replayed(0), []),
            *((replayed(n), apply(n)) for n in (1, 2, 3)),
            (MARKER, [ReplayDone(3, complete=True), EXACT]),
            (ProbeDue(), [AskReplay(3)]),
            *((live(n), []) for n in (4, 5)),
            (replayed(3), []),
            (MARKER, [ReplayDone(0, complete=True), *apply(4, 5)]),
        ],
    )


# ---- gaps ---------------------------------------------------------------------------------------------------


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
            (replayed(80), [Retire(GAP), *apply(80)]),
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
            (replayed(6), [Retire(GAP), *apply(6)]),
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
            (replayed(5, "q"), [Retire(NEW_PROCESS), AskReplay(0)]),
            *((replayed(n, "q"), apply(n, process="q")) for n in range(9)),
            (MARKER, [ReplayDone(9, complete=True), EXACT]),
            (live(9, "q"), apply(9, process="q")),
        ],
    )


def test_a_gap_without_replay_retires() -> None:
    play(
        heard(5),
        [
            (live(8), [GapSeen(2), Retire(GAP), *apply(8), PARTIAL]),
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


# ---- other processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_number_at_or_below_the_last_is_a_new_process(number: int) -> None:
    source = exact(5)
    actions = source.handle(live(number, "q"))
    if number == 0:
        assert actions == [Retire(NEW_PROCESS), *apply(0, process="q")]
        assert source.state is State.EXACT
        return
    assert actions == [Retire(NEW_PROCESS), AskReplay(0), UNKNOWN]
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
    play(heard(5), [(live(0, "q"), [Retire(NEW_PROCESS), *apply(0, process="q")])])
    play(heard(5), [(live(3, "q"), [Retire(NEW_PROCESS), *apply(3, process="q"), PARTIAL])])


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
            (replayed(1, "q"), [Retire(NEW_PROCESS), AskReplay(0)]),
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
            (MARKER, [Retire(NEW_PROCESS), AskReplay(0)]),
            (MARKER, [ReplayDone(0, complete=True), EXACT]),
            (live(0, "q"), apply(0, process="q")),
        ],
    )


def test_a_reconnection_without_replay_cannot_be_verified() -> None:
    play(
        heard(5),
        [
            (Disconnected(), [UNKNOWN]),
            (Connected(), [Retire(UNVERIFIED)]),
            (live(6), [*apply(6), PARTIAL]),
        ],
    )
    play(
        heard(5),
        [
            (Disconnected(), [UNKNOWN]),
            (Connected(), [Retire(UNVERIFIED)]),
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
            (DEADLINE, [ReplayDone(0, complete=False), Retire(UNVERIFIED), *apply(6), PARTIAL]),
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
            (replayed(1, "q"), [Retire(NEW_PROCESS), AskReplay(0)]),
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
    play(heard(5), [(Suspected(), [Retire(UNVERIFIED), UNKNOWN]), (live(6), [*apply(6), PARTIAL])])
    play(Source(can_replay=True), [(Suspected(), [])])


# ---- rebuilding ---------------------------------------------------------------------------------------------


def test_a_rebuild_forgets_at_once_and_starts_from_the_first_batch() -> None:
    play(
        exact(2),
        [
            (Rebuild(replay=True), [Retire(REBUILD), AskReplay(0), UNKNOWN]),
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
            (Rebuild(replay=True), [Retire(REBUILD), AskReplay(0), UNKNOWN]),
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
            (Rebuild(replay=not can_replay), [Retire(REBUILD), PARTIAL]),
            (live(1), []),
            (live(2), apply(2)),
        ],
    )


def test_a_rebuild_while_disconnected_waits_for_the_connection() -> None:
    play(
        quietly(exact(5), Disconnected()),
        [
            (Rebuild(replay=False), [Retire(REBUILD)]),
            (Connected(), [AskReplay(0)]),
            (replayed(0), apply(0)),
            (MARKER, [ReplayDone(1, complete=True), EXACT]),
        ],
    )


# ---- probes -------------------------------------------------------------------------------------------------


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


# ---- hostile ------------------------------------------------------------------------------------------------


def test_a_replay_that_never_makes_sense_is_given_up() -> None:
    source = quietly(exact(5), Suspected())
    asked = 0
    for n in range(1_000):
        if any(
            isinstance(action, AskReplay) for action in source.handle(replayed(5 if n % 2 else 3, f"q{n}"))
        ):
            asked += 1
    assert 0 < asked <= 64
    quietly(source, MARKER)
    assert not source.replaying


def test_a_batch_that_was_not_understood_is_no_longer_exact() -> None:
    play(exact(5), [(Damaged(Damage.MISSING), [PARTIAL]), (live(6), apply(6))])


def test_after_a_batch_that_may_have_held_removals_only_what_comes_is_known() -> None:
    play(
        exact(5),
        [
            (Damaged(Damage.STALE), [Retire(DAMAGED), PARTIAL]),
            (live(6), apply(6)),
            (Damaged(Damage.STALE), [Retire(DAMAGED)]),
            (Cleared(), [EXACT]),
        ],
    )


def test_damage_to_what_is_not_known_is_none() -> None:
    play(Source(can_replay=False), [(Damaged(Damage.STALE), []), (Connected(), [])])


def test_what_a_replay_was_not_asked_for_is_ignored() -> None:
    play(quietly(exact(5), ProbeDue()), [(replayed(3), []), (replayed(5), [])])
    play(exact(5), [(replayed(6), []), (MARKER, [])])


# ---- against a world ----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.sampled_from("pppppzllrdcmmbnxysk"), min_size=15, max_size=60),
    st.booleans(),
)
def test_in_the_end_exactly_what_the_publisher_says(buffer: int, script: list[str], can_replay: bool) -> None:
    """A publisher with a small buffer, losses and restarts: what was applied since the last retirement is always a
    contiguous piece of one process's batches, and once all is quiet it ends where that process is.
    """
    world = _World(buffer, Source(can_replay=can_replay))
    world.tell(Connected())
    for step in script:
        world.step(step)
        world.check()
    world.settle()
    world.check()
    if can_replay:
        assert world.source.state is not State.UNKNOWN
        assert world.applied[-1:] == world.published[-1:] or (world.started_over and not world.applied)
        if world.source.state is State.EXACT:
            resets = [n for n, message in enumerate(world.published) if message.payload.endswith(RESET)]
            since = max([0, *resets])
            assert [message for message in world.applied if message.number >= since] == world.published[
                since:
            ]


RESET = b"!"


class _World:
    """p: publish and hear; z: the same of a reset; l: publish and lose; r: restart; d, c: disconnect, connect;
    m, n: serve the replay whole or with its end lost; b: serve all but one batch; x, y: rebuild, from a replay or
    from what comes next; s: save a checkpoint; k: we restart from the last one saved.
    """

    def __init__(self, buffer: int, source: Source) -> None:
        self.source = source
        self.buffer = buffer
        self.process = 0
        self.published: list[Message] = []
        self.applied: list[Message] = []
        self.asked: int | None = None
        self.started_over = False
        self.saved: tuple[Checkpoint | None, list[Message], bool] = (None, [], False)

    def tell(self, event: SourceEvent) -> None:
        cleared = False
        for action in self.source.handle(event):
            match action:
                case Apply(message):
                    self.applied.append(message)
                    cleared = cleared or message.payload.endswith(RESET)
                case Retire(why):
                    self.applied.clear()
                    self.started_over = why == REBUILD
                    cleared = False
                case AskReplay(start):
                    self.asked = start
                case StopReplay():
                    self.asked = None
        if cleared:
            self.tell(Cleared())

    def step(self, step: str) -> None:
        match step:
            case "p" | "z" | "l":
                message = msg(len(self.published), f"{self.process}-")
                if step == "z":
                    message = message._replace(payload=message.payload + RESET)
                self.published.append(message)
                if step != "l" and self.source._connected:
                    self.tell(Live(self.published[-1]))
            case "r":
                self.tell(Disconnected())
                self.process += 1
                self.published = []
                self.tell(Connected())
            case "d":
                self.tell(Disconnected())
            case "c":
                self.tell(Disconnected())
                self.tell(Connected())
            case "x" | "y":
                self.tell(Rebuild(replay=step == "x"))
            case "s":
                if self.source.checkpoint is not None:
                    self.saved = self.source.checkpoint, list(self.applied), self.started_over
            case "k":
                checkpoint, applied, self.started_over = self.saved
                self.source = Source(can_replay=self.source._can_replay, resume=checkpoint)
                self.applied, self.asked = list(applied), None
                self.tell(Connected())
            case _:
                self.serve(step)

    def serve(self, how: str) -> None:
        start, self.asked = self.asked, None
        if start is None or not self.source.replaying:
            return
        left = [message for message in self.published[-self.buffer :] if message.number >= start]
        if how == "b" and len(left) > 2:
            del left[1]
        for message in left:
            self.tell(Replayed(message))
            if self.asked is not None:
                return  # it has asked anew, on another socket
        self.tell(MARKER if how != "n" else DEADLINE)

    def check(self) -> None:
        assert all(a.number + 1 == b.number for a, b in pairwise(self.applied))
        assert len({message.payload.split(b"-")[0] for message in self.applied}) <= 1
        if self.source.state is not State.UNKNOWN:
            assert all(message in self.published for message in self.applied)
        checkpoint = self.source.checkpoint
        if checkpoint is not None and self.applied:
            last = self.applied[-1]
            assert checkpoint.position == position(last.number, last.payload)
        elif checkpoint is not None:
            assert self.started_over
            assert not checkpoint.since_start

    def settle(self) -> None:
        if not self.source._connected:
            self.tell(Connected())
        for _ in range(3):
            while self.source.replaying:
                self.serve("m")
            self.tell(ProbeDue())
        while self.source.replaying:
            self.serve("m")


def test_actions_and_events_are_plain_values() -> None:
    values: list[Any] = [live(1), Apply(msg(1)), AskReplay(0), Retire(GAP)]
    assert len(set(values)) == 4
