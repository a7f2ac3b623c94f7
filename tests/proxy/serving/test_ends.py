"""What was taken is given back once, the last taken first, whatever fails."""

from functools import partial

import pytest

from proxy.serving.ends import Ends


def taking(*names: str) -> tuple[Ends, list[str]]:
    ends, ended = Ends(), list[str]()
    for name in names:
        ends.add(partial(ended.append, name))
    return ends, ended


def test_what_was_taken_last_ends_first_and_once() -> None:
    ends, ended = taking("claim", "leg", "answer")
    ends.close()
    ends.close()
    assert ended == ["answer", "leg", "claim"]


def test_ends_that_are_passed_on_are_called_there() -> None:
    ends, ended = taking("claim", "answer")
    other = ends.passed_on()
    ends.close()
    assert ended == []
    ends.add(partial(ended.append, "another claim"))
    ends.close()
    other.close()
    assert ended == ["another claim", "answer", "claim"]


def test_an_end_that_fails_keeps_no_other_from_being_called() -> None:
    ends, ended = taking("claim")

    def fail() -> None:
        raise OSError("closed already")

    ends.add(fail)
    ends.add(partial(ended.append, "answer"))
    with pytest.raises(OSError, match="closed already"):
        ends.close()
    assert ended == ["answer", "claim"]
