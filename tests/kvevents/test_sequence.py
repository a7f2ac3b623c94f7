import pytest

from kvevents.sequence import Contiguous, Gap, Position, Repeat, Restarted, Verdict, judge, position

AT_5 = position(5, b"five")


@pytest.mark.parametrize(
    ("last", "number", "payload", "verdict"),
    [
        (None, 0, b"x", Contiguous()),
        (None, 1, b"x", Gap(first=0, missing=1)),
        (None, 4711, b"x", Gap(first=0, missing=4711)),
        (AT_5, 6, b"x", Contiguous()),
        (AT_5, 6, b"five", Contiguous()),
        (AT_5, 7, b"x", Gap(first=6, missing=1)),
        (AT_5, 5, b"five", Repeat()),
        (AT_5, 5, b"other", Restarted()),
        (AT_5, 4, b"five", Restarted()),
        (AT_5, 0, b"x", Restarted()),
        (position(0, b""), 0, b"", Repeat()),
    ],
)
def test_verdict(last: Position | None, number: int, payload: bytes, verdict: Verdict) -> None:
    assert judge(last, number, payload) == verdict


def test_positions_of_different_payloads_differ() -> None:
    assert position(1, b"a") != position(1, b"b")
    assert position(1, b"a") == position(1, b"a")
