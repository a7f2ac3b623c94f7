"""The life of a hold, by transcripts: what happened, in order, and what that leaves to be done."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.connectors import Handoff
from proxy.serving.custody import Due, Hold, HoldState

LEASE_S = 30.0
NO_BLOCKS = Handoff(None, None, None, None)

EVENTS: dict[str, Callable[[Hold, float], None]] = {
    "prefilled": lambda hold, now: hold.answered(NO_BLOCKS, now),
    "prefill-failed": lambda hold, _: hold.failed(),
    "prefill-lost": lambda hold, _: hold.lost(finished=False),
    "prefill-cut": lambda hold, _: hold.lost(finished=True),
    "send": lambda hold, _: hold.spend(),
    "unconnected": lambda hold, _: hold.unspend(),
    "answered": lambda hold, _: hold.pulled(),
    "over": lambda hold, _: (
        hold.give_up()
    ),  # the client left, the decode leg failed, kvproxy stops: the attempt is over
    "released": lambda hold, _: hold.released(),
    "not-released": lambda hold, _: hold.stranded(),
}


def told(transcript: str, lease_s: float | None = LEASE_S) -> tuple[Hold, float]:
    """A hold that was told so much, and the time by then: `+5` lets five seconds pass."""
    hold, now = Hold("p:1", lease_s=lease_s), 100.0
    for event in transcript.split():
        if event.startswith("+"):
            now += float(event)
        else:
            EVENTS[event](hold, now)
    return hold, now


TRANSCRIPTS = """
the prefill leg runs                    |                                                    | prefilling | await
prefill fails                           | prefill-failed                                     | failed     | nothing
prefill ends without an answer          | prefill-lost                                       | unknown    | nothing
prefill is cut within its answer        | prefill-cut                                        | stranded   | nothing
prefill answers                         | prefilled                                          | held       | offer
prefill answers late                    | +60 prefilled                                      | held       | offer
client leaves during prefill            | over                                               | prefilling | await
... which then answers                  | over prefilled                                     | held       | release
... which then answers, and is freed    | over prefilled released                            | released   | nothing
... which then answers, nobody hears    | over prefilled not-released                        | stranded   | nothing
... which then fails                    | over prefill-failed                                | failed     | nothing
... which does not end in time          | over +5 prefill-lost                               | unknown    | nothing
... which is cut within its answer      | over prefill-cut                                   | stranded   | nothing
client leaves between the legs          | prefilled over                                     | held       | release
the decode leg runs                     | prefilled send                                     | spent      | await
decode answers                          | prefilled send answered                            | pulled     | nothing
decode answers, client leaves after     | prefilled send answered over                       | pulled     | nothing
decode stream is cut after its start    | prefilled send answered over                       | pulled     | nothing
client leaves during decode             | prefilled send over                                | spent      | release
... and it is freed                     | prefilled send over released                       | released   | nothing
decode cannot be connected to           | prefilled send unconnected                         | held       | offer
... and another one answers             | prefilled send unconnected send answered           | pulled     | nothing
... and another one fails               | prefilled send unconnected send over               | spent      | release
... and there is no other               | prefilled send unconnected over                    | held       | release
decode rejects                          | prefilled send over released                       | released   | nothing
decode dies before its first byte       | prefilled send over                                | spent      | release
... and nobody can free it              | prefilled send over not-released                   | stranded   | nothing
decode stalls before its first byte     | prefilled send +300 over                           | spent      | release
prefill instance dies while held        | prefilled over not-released                        | stranded   | nothing
prefill instance dies while spent       | prefilled send over not-released                   | stranded   | nothing
lease is nearly over before decode      | prefilled +20                                      | held       | release
lease is nearly over after a connect    | prefilled send +20 unconnected                     | held       | release
just young enough                       | prefilled +19.9                                    | held       | offer
stop during prefill                     | over prefill-lost                                  | unknown    | nothing
stop while held                         | prefilled over not-released                        | stranded   | nothing
stop while spent                        | prefilled send over released                       | released   | nothing
"""
ROWS = [[cell.strip() for cell in row.split("|")] for row in TRANSCRIPTS.strip().splitlines()]


@pytest.mark.parametrize(
    ("transcript", "state", "due"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_transcripts(transcript: str, state: str, due: str) -> None:
    hold, now = told(transcript)
    assert (hold.state, hold.due(now)) == (HoldState(state), Due(due))
    assert hold.ended is (due == "nothing")


OF_A_STORE = """
the prefill leg runs                    |                                                    | prefilling | await
prefill answers                         | prefilled                                          | held       | offer
prefill answered long ago               | prefilled +600                                     | held       | offer
client leaves between the legs          | prefilled over                                     | held       | nothing
the decode leg runs                     | prefilled send                                     | spent      | await
decode answers                          | prefilled send answered                            | pulled     | nothing
decode cannot be connected to           | prefilled send unconnected                         | held       | offer
decode fails                            | prefilled send over                                | spent      | nothing
"""


@pytest.mark.parametrize("row", OF_A_STORE.strip().splitlines())
def test_a_store_keeps_nothing_for_anybody(row: str) -> None:
    _, transcript, state, due = (cell.strip() for cell in row.split("|"))
    hold, now = told(transcript, lease_s=None)
    assert (hold.state, hold.due(now)) == (HoldState(state), Due(due))
    assert not hold.waited
    assert not hold.counted


def test_blocks_wait_and_are_counted_unless_there_never_were_any() -> None:
    assert not told("")[0].waited
    for transcript in ("prefilled", "prefilled send", "prefilled released", "over prefilled"):
        assert told(transcript)[0].waited
        assert told(transcript)[0].counted
    for transcript in ("prefill-lost", "prefill-cut"):
        assert not told(transcript)[0].waited
        assert told(transcript)[0].counted
    assert not told("prefill-failed")[0].counted


IMPOSSIBLE = """
                         | send unconnected answered released not-released
prefilled                | prefilled prefill-failed prefill-lost prefill-cut unconnected answered
prefilled send           | prefilled prefill-failed prefill-lost prefill-cut send
prefill-failed           | everything
prefill-lost             | everything
prefill-cut              | everything
prefilled send answered  | everything
prefilled released       | everything
prefilled not-released   | everything
"""
STEPS = set(EVENTS) - {"over"}  # which may be said in any state


@pytest.mark.parametrize("row", IMPOSSIBLE.strip("\n").splitlines())
def test_impossible_orders_are_errors(row: str) -> None:
    transcript, steps = row.split("|")
    for step in STEPS if steps.strip() == "everything" else steps.split():
        hold, now = told(transcript)
        before = hold.state
        with pytest.raises(RuntimeError):
            EVENTS[step](hold, now)
        assert hold.state is before


def test_a_hold_that_was_not_prefilled_names_no_blocks() -> None:
    with pytest.raises(RuntimeError):
        _ = told("")[0].handoff
    assert told("prefilled")[0].handoff is NO_BLOCKS


def test_a_lease_counts_from_the_prefill_answer_and_never_below_zero() -> None:
    hold, now = told("+7 prefilled")
    assert hold.lease_left_s(now + 20) == 10.0
    assert hold.lease_left_s(now + 100) == 0.0


@given(st.lists(st.sampled_from([*EVENTS, "+8"]), max_size=12))
def test_in_any_order_of_events_a_hold_is_offered_once_and_young_and_is_never_forgotten(
    events: list[str],
) -> None:
    hold, now = Hold("p:1", lease_s=LEASE_S), 0.0
    answered_at: float | None = None
    touched = over = False
    for event in events:
        if event == "+8":
            now += 8.0
            continue
        try:
            EVENTS[event](hold, now)
        except RuntimeError:
            continue
        answered_at = now if event == "prefilled" else answered_at
        touched = {"send": True, "unconnected": False}.get(event, touched)
        over = over or event == "over"
        due = hold.due(now)
        if due is Due.OFFER:
            assert answered_at is not None
            assert not touched
            assert not over
            assert now - answered_at < LEASE_S - 10.0
        if over and not hold.ended:  # somebody waits for its prefill leg, or gives it back
            assert due is (Due.AWAIT if answered_at is None else Due.RELEASE)
        assert hold.ended is (due is Due.NOTHING)
