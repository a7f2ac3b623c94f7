"""When a source is asked again: in, what happened and when; out, when the next probe is due and what it
is."""

from kvevents.probe_clock import ProbeClock


def clock() -> ProbeClock:
    """Of a connection at time 0 whose first replay was whole at time 1."""
    probes = ProbeClock(probe_s=10.0, settle_s=2.0)
    probes.link_changed()
    assert not probes.replay_ended(1.0, batches=5, complete=True)
    return probes


def test_the_first_whole_replay_is_asked_again_soon_and_then_at_intervals() -> None:
    probes = clock()
    assert probes.due_at == 3.0
    assert probes.begin_probe(3.0)
    assert not probes.replay_ended(3.5, batches=0, complete=True)
    assert probes.due_at == 13.5
    assert not probes.begin_probe(13.5)
    assert probes.due_at == 23.5


def test_a_replay_that_was_not_whole_is_not_the_first() -> None:
    probes = ProbeClock(probe_s=10.0, settle_s=2.0)
    assert not probes.replay_ended(1.0, batches=5, complete=False)
    assert probes.due_at == 11.0
    assert not probes.replay_ended(4.0, batches=5, complete=True)
    assert probes.due_at == 6.0


def test_a_live_batch_puts_the_next_probe_off_unless_the_source_is_incomplete() -> None:
    probes = clock()
    probes.heard_live(2.0, incomplete=True)
    assert probes.due_at == 3.0
    probes.heard_live(2.0, incomplete=False)
    assert probes.due_at == 12.0
    assert not probes.begin_probe(12.0)


def test_replays_that_bring_what_was_never_heard_live_are_counted_in_a_row() -> None:
    probes = clock()
    assert probes.replay_ended(3.5, batches=1, complete=True)
    assert not probes.replay_ended(13.5, batches=0, complete=True)
    assert probes.replay_ended(23.5, batches=1, complete=True)
    assert probes.unheard == 2
    probes.heard_live(24.0, incomplete=True)
    assert probes.unheard == 0


def test_a_new_connection_begins_anew() -> None:
    probes = clock()
    assert probes.replay_ended(3.5, batches=1, complete=True)
    probes.link_changed()
    assert probes.unheard == 0
    assert not probes.replay_ended(5.0, batches=7, complete=True)
    assert probes.due_at == 7.0


def test_a_probe_that_cannot_be_made_is_tried_again_soon() -> None:
    probes = clock()
    probes.put_off(3.0)
    assert probes.due_at == 4.0
