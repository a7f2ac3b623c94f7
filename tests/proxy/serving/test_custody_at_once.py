"""The blocks of two legs that run at once, by transcripts: what happened, what became of them, and which leg
runs on for nothing.
"""

import itertools
from collections.abc import Callable

import pytest

from proxy.connectors import Handoff
from proxy.phases import Phase
from proxy.serving.custody import HoldState
from proxy.serving.custody_at_once import Crossing

TOLD = Handoff(None, 9, 4, "e")

EVENTS: dict[str, Callable[[Crossing], None]] = {
    "prefilled": lambda crossing: crossing.answered(TOLD, 0.0),
    "prefill-failed": lambda crossing: crossing.failed(),
    "prefill-lost": lambda crossing: crossing.lost(finished=False),
    "prefill-cut": lambda crossing: crossing.lost(finished=True),
    "produced": lambda crossing: crossing.pulled(),
    "missed": lambda crossing: crossing.missed(),
    "over": lambda crossing: crossing.give_up(),
}
OF_PREFILL = ("prefilled", "prefill-failed", "prefill-lost", "prefill-cut")
OF_DECODE = ("produced", "missed")


def told(transcript: str) -> Crossing:
    crossing = Crossing("p:1")
    for event in transcript.split():
        EVENTS[event](crossing)
    return crossing


TRANSCRIPTS = """
both legs run                           |                                | prefilling |
prefill answers                         | prefilled                      | spent      |
... and decode                          | prefilled produced             | pulled     |
decode answers first                    | produced                       | pulled     |
... and prefill                         | produced prefilled             | pulled     |
... and prefill is cut, or fails        | produced prefill-cut           | pulled     |
prefill fails                           | prefill-failed                 | failed     | decode
... so decode is cancelled              | prefill-failed missed          | failed     |
... but it has produced meanwhile       | prefill-failed produced        | pulled     |
prefill ends without an answer          | prefill-lost                   | unknown    | decode
prefill is cut within its answer        | prefill-cut                    | stranded   | decode
... so decode is cancelled              | prefill-cut missed             | stranded   |
decode fails                            | missed                         | prefilling | prefill
... so prefill is cancelled             | missed prefill-lost            | unknown    |
... which has answered meanwhile        | missed prefilled               | stranded   |
decode fails after prefill              | prefilled missed               | stranded   |
both fail                               | prefill-failed missed          | failed     |
client leaves, both run                 | over                           | prefilling | prefill decode
... and both are cancelled              | over missed prefill-lost       | unknown    |
... and prefill is cancelled first      | over prefill-lost              | unknown    | decode
client leaves, prefill has answered     | prefilled over                 | spent      | decode
... and decode is cancelled             | prefilled over missed          | stranded   |
... and decode has produced meanwhile   | prefilled over produced        | pulled     |
client leaves while it is answered      | prefilled produced over        | pulled     |
... and prefill still runs              | produced over                  | pulled     |
"""
ROWS = [[cell.strip() for cell in row.split("|")] for row in TRANSCRIPTS.strip().splitlines()]


@pytest.mark.parametrize(
    ("transcript", "state", "to_cancel"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_transcripts(transcript: str, state: str, to_cancel: str) -> None:
    crossing = told(transcript)
    assert crossing.state is HoldState(state)
    assert crossing.to_cancel == {Phase(phase) for phase in to_cancel.split()}
    ended = [set(ends) & set(transcript.split()) for ends in (OF_PREFILL, OF_DECODE)]
    assert crossing.over is ("produced" in transcript or all(ended))


@pytest.mark.parametrize("end", [*OF_PREFILL, *OF_DECODE])
def test_a_leg_ends_once(end: str) -> None:
    for again in OF_PREFILL if end in OF_PREFILL else OF_DECODE:
        crossing = told(end)
        before = crossing.state
        with pytest.raises(RuntimeError):
            EVENTS[again](crossing)
        assert crossing.state is before


def test_only_an_answer_tells_where_the_prompt_is_cached() -> None:
    for end in OF_PREFILL[1:]:
        assert told(end).cached_on is None
        with pytest.raises(RuntimeError):
            _ = told(end).handoff
    assert (told("prefilled").cached_on, told("prefilled").handoff) == ("p:1", TOLD)


@pytest.mark.parametrize(
    ("transcript", "waited"),
    [
        ("prefilled", True),
        ("prefilled produced", True),
        ("produced prefilled", False),
        ("missed prefilled", False),
    ],
)
def test_blocks_wait_where_the_decode_leg_still_runs(transcript: str, waited: bool) -> None:
    assert told(transcript).waited is waited


def test_in_any_order_every_leg_is_taken_cancelled_or_over_and_the_blocks_have_an_end() -> None:
    for first, second, gone_at in itertools.product(OF_PREFILL, OF_DECODE, [None, 0, 1, 2]):
        for order in ([first, second], [second, first]):
            steps = order if gone_at is None else [*order[:gone_at], "over", *order[gone_at:]]
            for count in range(len(steps) + 1):
                so_far = steps[:count]
                crossing = told(" ".join(so_far))
                running = {phase for phase, ends in ((Phase.PREFILL, OF_PREFILL), (Phase.DECODE, OF_DECODE))
                           if not set(ends) & set(so_far)}  # fmt: skip
                assert crossing.to_cancel <= running
                if "over" in so_far and "produced" not in so_far:
                    assert crossing.to_cancel == running
                if not running:
                    assert crossing.over
                    assert crossing.state not in {HoldState.PREFILLING, HoldState.SPENT}
            assert (crossing.state is HoldState.PULLED) is (second == "produced")
            stays = second == "missed" and first in {"prefilled", "prefill-cut"}
            assert (crossing.state is HoldState.STRANDED) is stays
