"""A replay that loses something, never ends or makes no sense costs another round or a doubt, never a wrong
view."""

from kvevents.source import Source
from kvevents.source_events import (
    AskReplay,
    Cleared,
    Connected,
    Damage,
    Damaged,
    ProbeDue,
    ReplayDone,
    Retire,
    RetireReason,
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
    live,
    play,
    quietly,
    replayed,
)


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
            (MARKER, [ReplayDone(0, complete=False), Retire(RetireReason.GAP), *apply(4), PARTIAL]),
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
            (replayed(0), [Retire(RetireReason.REBUILD), *apply(0), EXACT]),
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
            (Damaged(Damage.STALE), [Retire(RetireReason.DAMAGED), PARTIAL]),
            (live(6), apply(6)),
            (Damaged(Damage.STALE), [Retire(RetireReason.DAMAGED)]),
            (Cleared(), [EXACT]),
        ],
    )


def test_damage_to_what_is_not_known_is_none() -> None:
    play(Source(can_replay=False), [(Damaged(Damage.STALE), []), (Connected(), [])])


def test_what_a_replay_was_not_asked_for_is_ignored() -> None:
    play(quietly(exact(5), ProbeDue()), [(replayed(3), []), (replayed(5), [])])
    play(exact(5), [(replayed(6), []), (MARKER, [])])
