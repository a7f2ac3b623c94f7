"""What is counted of requests: how they ended, whether they were let in, and how long they took."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from proxy.config import WhenNoPrefill
from proxy.happenings import (
    AnswerBegan,
    ClientStalled,
    NoPrefill,
    PromptKnown,
    QueueLeft,
    Refused,
    RequestEnded,
    RequestUnrouted,
)
from proxy.observability.series import counter, histogram

REFUSALS = (
    "queue_full",
    "shed",
    "queue_timeout",
    "client_limit",
    "engines_full",
    "no_engine",
    "no_prefill",
    "too_long",
    "no_memory",
    "no_descriptors",
    "stopping",
)
"""Why requests are not let in."""

REQUESTS = (
    counter("requests", "Requests by how they ended.", (RequestEnded, RequestUnrouted), "route", "outcome"),
    histogram(
        "request_duration_seconds", "From a request's arrival to its last byte.", RequestEnded, "route"
    ),
    histogram(
        "time_to_first_byte_seconds",
        "From a request's arrival to the first byte for the client.",
        AnswerBegan,
        "route",
    ),
    counter("tokenized_prompts", "Prompts whose tokens are known, by who told.", PromptKnown, "by"),
    histogram("queue_wait_seconds", "Time in the queue of requests that had to wait.", QueueLeft),
    counter("refused_requests", "Requests that were not let in.", Refused, "reason", starts_with=REFUSALS),
    counter(
        "no_prefill",
        "Requests that met no usable prefill instance, by what was done.",
        NoPrefill,
        "action",
        starts_with=WhenNoPrefill,
    ),
    counter("stalled_clients", "Clients cut because they took nothing of their answer.", ClientStalled),
)


def show_requests(
    registry: CollectorRegistry,
    *,
    queued: Callable[[], int],
    held_back: Callable[[], int],
    body_bytes: Callable[[], int],
) -> None:
    """Read these at every scrape."""
    for name, help_text, read in (
        ("queued_requests", "Requests that wait.", queued),
        ("clients_held_back", "Clients with as many requests running as one may have.", held_back),
        ("body_bytes", "Memory held by request bodies, estimated.", body_bytes),
    ):
        Gauge(f"kvproxy_{name}", help_text, registry=registry).set_function(read)
