"""When attempts fail, an instance is avoided or blamed only for its own fault, never for another one's."""

import pytest

from proxy.errors import ConnectTimeoutError, LegBrokenError, LegError, NoSocketError
from proxy.phases import Phase
from proxy.serving.attempts import Attempts
from proxy.serving.exchange import Reply
from proxy.serving.legs.leg import AttemptFailedError


def decode_failed(instance: str, prefill: str, cause: LegError | None = None) -> AttemptFailedError:
    reply = None if cause is not None else Reply(500, [], b"", None)
    return AttemptFailedError(Phase.DECODE, instance, reply, cause, prefill_on=prefill)


def prefill_failed(instance: str, cause: LegError | None = None) -> AttemptFailedError:
    return AttemptFailedError(
        Phase.PREFILL, instance, Reply(500, [], b"", None) if cause is None else None, cause
    )


@pytest.mark.parametrize(
    ("failures", "prefill_on", "avoid", "blamed"),
    [
        pytest.param([prefill_failed("p1")], None, {"p1"}, {"p1"}, id="a prefill leg"),
        pytest.param([decode_failed("d1", "p1")], "p1", {"d1"}, {"d1"}, id="a decode leg"),
        pytest.param(
            [decode_failed("d1", "p1"), decode_failed("d2", "p1")],
            None,
            {"d1", "d2", "p1"},
            {"p1"},
            id="two decode legs that were to fetch from one",
        ),
        pytest.param(
            [decode_failed("d1", "p1"), decode_failed("d2", "p2")],
            "p2",
            {"d1", "d2"},
            {"d1", "d2"},
            id="two decode legs that were to fetch from different ones",
        ),
        pytest.param(
            [decode_failed("d1", "p1", ConnectTimeoutError("d1", "")), decode_failed("d2", "p1")],
            "p1",
            {"d1", "d2"},
            {"d1", "d2"},
            id="one that fetched nothing and one that failed to",
        ),
        pytest.param(
            [prefill_failed("p1", NoSocketError("p1", ""))], None, {"p1"}, set(), id="our own want of sockets"
        ),
        pytest.param(
            [decode_failed("d1", "dead", LegBrokenError("d1", ""))],
            "dead",
            {"d1"},
            set(),
            id="blocks that died with their instance",
        ),
    ],
)
def test_blame(
    failures: list[AttemptFailedError], prefill_on: str | None, avoid: set[str], blamed: set[str]
) -> None:
    attempts = Attempts(5)
    for failure in failures:
        attempts.failed_by(failure)
    assert attempts.prefill_on == prefill_on
    assert set(attempts.avoid) == avoid
    assert attempts.to_blame(lambda failure: "dead" if failure.prefill_on == "dead" else None) == blamed
