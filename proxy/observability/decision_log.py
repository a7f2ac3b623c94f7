"""Each logged decision becomes a line, once its request has ended: what it was made of, and what came of it.

No line has a prompt, a key, a session, or anything else that a client has written but the request id and the
name of a model. Nobody waits for it (`line_writer`).
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from proxy.happenings import DecisionsLogged, DecisionsLost, Happening, RequestEnded, Tell
from proxy.observability.family import Group
from proxy.observability.line_writer import FLUSH_S, LOST, LineWriter
from proxy.observability.record_files import RecordFiles
from proxy.observability.series import counter

MAX_WAITING = 5000
"""Lines that may wait to be written, of 2 kB or so each."""

LOGGED = (
    counter(
        "logged_decisions",
        "Decisions that were written to the decision log.",
        DecisionsLogged,
        amount="count",
    ),
    counter(
        "unlogged_decisions",
        "Decisions that are missing in the decision log.",
        DecisionsLost,
        "reason",
        amount="count",
        starts_with=LOST,
        words={"reason": LOST},
    ),
)

ON_THE_PAGE = Group(
    "Decision log",
    tuple(series.family for series in LOGGED),
    "With [`--decision-log`](policies.md#the-decision-log).",
)


class DecisionLog:
    """A consumer that writes a line for each request whose decision has an account. It belongs to the event
    loop.
    """

    hears = (RequestEnded,)

    def __init__(self, files: RecordFiles, tell: Tell, *, flush_s: float = FLUSH_S) -> None:
        self._lines = LineWriter[RequestEnded](
            files,
            lines_of,
            wrote=lambda count: tell(DecisionsLogged(count)),
            lost=lambda count, reason: tell(DecisionsLost(count, reason)),
            where="the decision log",
            most_weight=MAX_WAITING,
            most_waiting=MAX_WAITING,
            flush_s=flush_s,
        )

    def hear(self, happening: Happening) -> None:
        """Take a request."""
        if isinstance(happening, RequestEnded) and happening.account is not None:
            self._lines.add(happening, 1)

    async def close(self) -> None:
        """As `LineWriter.close`."""
        await self._lines.close()


def sampled(share: float, rng: random.Random | None = None) -> Callable[[], bool]:
    """Whether the next decision is logged, if a share of all is."""
    if share in {0, 1}:
        return lambda: share == 1
    dice = (rng or random.Random()).random  # noqa: S311  # which lines are written is no secret
    return lambda: dice() < share


def lines_of(requests: Sequence[RequestEnded]) -> list[bytes]:
    """The lines of requests that have an account."""
    encode = msgspec.json.Encoder().encode
    return [encode(_line(request)) + b"\n" for request in requests]


def _line(request: RequestEnded) -> dict[str, Any]:
    first_byte_s = request.first_byte_s
    return {
        "time": round(request.arrived_at, 3),
        "request_id": request.request_id,
        "route": request.route,
        "model": request.model,
        **(request.account or {}),
        "decoded_on": request.decode,
        "predicted_ttft_ms": _ms(request.predicted_ttft_ms),
        "ttft_ms": _ms(request.ttft_ms),
        "prefill_ms": _ms(request.prefill_ms),
        "first_byte_ms": None if first_byte_s is None else _ms(1000 * first_byte_s),
        "duration_ms": _ms(1000 * request.seconds),
        "answer_tokens": request.answer_tokens,
        "outcome": request.outcome,
        "status": request.status,
        "attempts": request.attempts,
    }


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
