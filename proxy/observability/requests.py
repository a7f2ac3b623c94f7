"""The metrics of requests: how they ended, whether they were let in, and how long they took."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from proxy.config import WhenNoPrefill
from proxy.happenings import (
    AnswerBegan,
    ClientStalled,
    FirstTokenForeseen,
    GoalEnded,
    NoPrefill,
    PromptKnown,
    QueueLeft,
    Refused,
    RequestEnded,
    RequestUnrouted,
)
from proxy.observability.family import Group, gauge
from proxy.observability.series import counter, histogram

REFUSALS = {
    "queue_full": "`--max-queue` requests wait",
    "shed": "it had a place in the full queue, which a client with fewer requests got",
    "queue_timeout": "the engines were busy, by kvproxy's limits, for `--queue-timeout`",
    "client_limit": "`--max-client-requests` of its client ran, for `--queue-timeout`",
    "engines_full": "the engines said that they are full, for `--queue-timeout`",
    "late": "its first token was predicted far later than its `X-Kvproxy-TTFT-Ms`, with `--refuse-late`",
    "no_engine": "no usable instance came within `--queue-timeout`",
    "no_prefill": "no prefill instance was usable, with `--when-no-prefill fail`",
    "too_long": "no engine takes one so long",
    "no_memory": "`--max-bodies-mb` is taken",
    "no_descriptors": "no file descriptors are left for its connections",
    "stopping": "kvproxy was shutting down",
}
"""Why requests are not let in."""

OUTCOMES = {
    "ok": "",
    "client_error": "any 4xx but those below",
    "unauthorized": "401; route `other` alone",
    "client_left": "",
    "engine_error": "",
    "unavailable": "answered 429 or 503: nothing could or was to serve it now",
    "timeout": "a deadline passed, before or in the stream",
    "cut": "a stream that had begun ended with an error event: its engine failed, or kvproxy stopped",
    "failed": "kvproxy's own fault",
}
"""How requests end."""

GOALS = {"met": "", "missed": ""}
"""What became of goals."""

ERROR_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 10)

REQUESTS = (
    counter(
        "requests",
        "Requests by how they ended.",
        (RequestEnded, RequestUnrouted),
        "route",
        "outcome",
        words={"outcome": OUTCOMES},
        more="Route `other` is what reached none of [these](routes.md).",
    ),
    histogram(
        "request_duration_seconds", "From a request's arrival to its last byte.", RequestEnded, "route"
    ),
    histogram(
        "time_to_first_byte_seconds",
        "From a request's arrival to the first byte for the client.",
        AnswerBegan,
        "route",
        more="Comments in a stream are no first byte.",
    ),
    counter(
        "tokenized_prompts",
        "Prompts whose tokens are known, by where the tokens came from.",
        PromptKnown,
        "by",
        words={
            "by": {
                "local": "the tokenizer in kvproxy",
                "engine": "`/tokenize`",
                "client": "the request has token ids",
            }
        },
        more="[Tokens](tokens.md) tells of the paths.",
    ),
    histogram(
        "ttft_prediction_error_seconds",
        "How far the first token of a stream came from when it was predicted.",
        FirstTokenForeseen,
        of="error_s",
        buckets=ERROR_SECONDS,
        more="Only under a policy that predicts (`least_ms`), where a request was served as it was decided.",
    ),
    histogram(
        "ttft_prediction_ratio",
        "What the first token took, as a multiple of what was predicted.",
        FirstTokenForeseen,
        of="ratio",
        buckets=RATIOS,
        more="Above 1: it came later. As `kvproxy_ttft_prediction_error_seconds`.",
    ),
    counter(
        "ttft_goals",
        "Streams with a goal (`X-Kvproxy-TTFT-Ms`) that brought a first token, by whether it came in time.",
        GoalEnded,
        "outcome",
        starts_with=GOALS,
        words={"outcome": GOALS},
    ),
    histogram("queue_wait_seconds", "Time in the queue of requests that had to wait.", QueueLeft),
    counter(
        "refused_requests",
        "Requests that were not let in.",
        Refused,
        "reason",
        starts_with=REFUSALS,
        words={"reason": REFUSALS},
    ),
    counter(
        "no_prefill",
        "Requests that met no usable prefill instance, by what was done.",
        NoPrefill,
        "action",
        starts_with=WhenNoPrefill,
        words={
            "action": {
                WhenNoPrefill.WAIT: "it waits in the queue",
                WhenNoPrefill.DECODE: "a decode instance serves all of it",
                WhenNoPrefill.FAIL: "it is refused",
            }
        },
    ),
    counter("stalled_clients", "Clients cut because they took nothing of their answer.", ClientStalled),
)

QUEUED = gauge("queued_requests", "Requests that wait.")
HELD_BACK = gauge(
    "clients_held_back",
    "Clients with as many requests running as one may have.",
    more="The limit is `--max-client-requests`.",
)
BODY_BYTES = gauge(
    "body_bytes",
    "Memory held by request bodies, estimated.",
    more="What is made of a body is in it; `--max-bodies-mb` is [the limit](overload.md).",
)

ON_THE_PAGE = Group("Requests", (*(series.family for series in REQUESTS), QUEUED, HELD_BACK, BODY_BYTES))


def show_requests(
    registry: CollectorRegistry,
    *,
    queued: Callable[[], int],
    held_back: Callable[[], int],
    body_bytes: Callable[[], int],
) -> None:
    """Have the gauges of requests read these functions at each scrape."""
    for family, read in ((QUEUED, queued), (HELD_BACK, held_back), (BODY_BYTES, body_bytes)):
        family.registered_gauge(registry).set_function(read)
