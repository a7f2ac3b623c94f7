"""What `/status` shows of the queue and of the bodies in memory."""

from typing import Annotated

from msgspec import Meta

from proxy.config import WhenNoPrefill
from proxy.shown import Count, Shown, says


class QueueShown(Shown, frozen=True, kw_only=True):
    """Requests that wait, and the limits of admission."""

    waiting: Annotated[Count, says("Requests that wait, the parts of a list of prompts counted singly.")]
    waiting_clients: Count
    running_clients: Annotated[Count, says("Clients of which a request is being served.")]
    clients_held_back: Annotated[Count, says("Those that have as many running as one may.")]
    max_client_requests: Annotated[Count, says("--max-client-requests; 0 for any number.")]
    max_client_priority: Annotated[int | None, says("--max-client-priority; null without.")]
    max_queue: Annotated[Count, says("--max-queue.")]
    queue_timeout_s: Annotated[float, says("--queue-timeout.")]
    max_prefill_tokens: Annotated[Count, says("--max-prefill-tokens; 0 for no limit.")]
    max_decode_tokens: Annotated[Count, says("--max-decode-tokens; 0 for no limit.")]
    expected_answer_tokens: Annotated[int, Meta(ge=1), says("--expected-answer-tokens.")]
    when_no_prefill: WhenNoPrefill


class BodiesShown(Shown, frozen=True, kw_only=True):
    """Estimated memory of request bodies."""

    held_bytes: Count
    limit_bytes: Annotated[Count, says("--max-bodies-mb.")]
    reserve_bytes: Annotated[Count, says("Of the limit, what only small bodies may take.")]
    clients: Annotated[Count, says("How many clients have bodies here.")]
