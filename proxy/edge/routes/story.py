"""A `Story` collects what `RequestEnded` tells of a generating request, as far as the request came.

No body is kept for it, and of a stream only the last two runs are.
"""

import time

from proxy.edge.visit import Visit
from proxy.happenings import RequestEnded
from proxy.request.dialects import Dialect
from proxy.request.sse import events
from proxy.scheduling.decision import Decision
from proxy.serving.exchange import Call, Foreseen
from proxy.serving.learning import MAX_READ_BYTES


class Story:
    """What is known of a request so far; None for what it has not reached."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.decision: Decision | None = None
        self.status: int | None = None
        self.first_byte_s: float | None = None
        self.answer_tokens: int | None = None
        self.answer_events: int | None = None
        self.ttft_s: float | None = None

    @property
    def foreseen(self) -> Foreseen | None:
        """What was predicted where the request was served; None if it was not served by that decision alone:
        its decode leg has moved, say.
        """
        placed = self.placed
        return placed if placed is not None and placed.decision is self.decision else None

    @property
    def placed(self) -> Foreseen | None:
        """The last attempt's decision, if somebody wants to know of it; None for a list of prompts, which
        have one each.
        """
        if self.call is None or self.call.request.prompt_count > 1:
            return None
        return self.call.trace.placed

    def began(self, now: float) -> float | None:
        """The first token of a stream is there. Returns what was predicted, in seconds, if anything was."""
        if (foreseen := self.foreseen) is None:
            return None
        self.ttft_s = now - foreseen.at
        return None if foreseen.ttft_ms is None else foreseen.ttft_ms / 1000

    def end(self, visit: Visit, dialect: Dialect, outcome: str) -> RequestEnded:
        """The `RequestEnded` of the request, which is over now."""
        seconds = time.monotonic() - visit.started_at
        call, decision = self.call, self.decision
        prefill = decision.prefill.chosen if decision is not None else None
        decode = decision.decode.chosen if decision is not None else None
        foreseen = self.foreseen
        placed = self.placed
        prefill_s = call.trace.prefill_s if call is not None else None
        known = call.trace.prompt if call is not None and call.request.prompt_count == 1 else None
        return RequestEnded(
            dialect.name,
            outcome,
            seconds,
            arrived_at=time.time() - seconds,
            request_id=visit.request_id,
            client=call.ticket.client if call is not None else None,
            model=call.request.model if call is not None else None,
            stream=call.request.stream if call is not None else None,
            status=self.status,
            first_byte_s=self.first_byte_s,
            attempts=call.trace.attempts if call is not None else 0,
            prefill=prefill.instance if prefill is not None else None,
            decode=decode.instance if decode is not None else None,
            bypass=decision.bypass if decision is not None else None,
            cached_tokens=prefill.cached_tokens if prefill is not None else None,
            prompt_tokens=known.tokens if known is not None else None,
            block_keys=known.block_keys if known is not None else {},
            answer_tokens=self.answer_tokens,
            answer_events=self.answer_events,
            session=call.session if call is not None else None,
            predicted_ttft_ms=foreseen.ttft_ms if foreseen is not None else None,
            ttft_ms=1000 * self.ttft_s if self.ttft_s is not None else None,
            prefill_ms=1000 * prefill_s if prefill_s is not None else None,
            account=placed.decision.account if placed is not None else None,
        )


def answer_tokens(dialect: Dialect, answer: bytes) -> int | None:
    """How many tokens were generated, by the usage in an answer or in an event; None if it has none."""
    if len(answer) > MAX_READ_BYTES or b'"usage"' not in answer:
        return None
    try:
        return dialect.usage(answer).answer_tokens
    except ValueError:
        return None


def streamed_tokens(dialect: Dialect, *runs: bytes) -> int | None:
    """The same by the last usage in the last runs of a stream; None unless its client asked for usage."""
    tokens = None
    for run in runs:
        if b'"usage"' in run and len(run) <= MAX_READ_BYTES:
            for _, data in events(run):
                counted = answer_tokens(dialect, data)
                tokens = tokens if counted is None else counted
    return tokens
