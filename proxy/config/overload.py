"""What becomes of requests when engines have too many, and when no prefill instance is usable."""

import enum
from typing import Annotated

from proxy.config.settings import COUNT, MIB, SECONDS, Section, Setting, check_header
from proxy.errors import ConfigError

PRIORITIES_BELOW = 1 << 63
"""The bound of a priority, either way: engines read it as a number of 64 bits."""


MOST_LATE = 1000.0
"""The highest `--refuse-late`: more is as good as never."""


class WhenNoPrefill(enum.StrEnum):
    """What becomes of a request when no prefill instance is usable."""

    WAIT = "wait"
    """The request waits in the queue, until the queue's deadline."""
    DECODE = "decode"
    """A decode instance serves the whole request."""
    FAIL = "fail"
    """The request is refused at once."""


def _check_priority(flag: str, priority: int) -> None:
    if abs(priority) >= PRIORITIES_BELOW:
        raise ConfigError(f"{flag} {priority} is more than engines take")


def _check_late(flag: str, factor: float) -> None:
    if not (factor == 0 or 1 <= factor <= MOST_LATE):
        raise ConfigError(f"{flag} {factor:g}: give 0, or a number from 1 to {MOST_LATE:g}")


class Admission(Section, frozen=True, kw_only=True):
    """How much an instance gets at once, and how other requests wait."""

    max_prefill_tokens: Annotated[
        int,
        Setting(
            "--max-prefill-tokens",
            COUNT,
            "outstanding tokens of one engine's prefill legs, 0 for no limit",
            least=0,
            more="What does not fit waits in the queue; an idle engine takes any request."
            " [Which values](overload.md).",
        ),
    ] = 0
    max_decode_tokens: Annotated[
        int,
        Setting("--max-decode-tokens", COUNT, "the same of its decode legs, answers included", least=0),
    ] = 0
    """Includes the tokens that the legs are expected to generate."""
    expected_answer_tokens: Annotated[
        int,
        Setting(
            "--expected-answer-tokens",
            COUNT,
            "what an answer counts for that may become longer, whatever its max_tokens",
            least=1,
            more="It counts so in the limit of decode tokens and in clients' turns, times `n`."
            " [How](overload.md).",
            reloadable=True,
        ),
    ] = 512
    """The tokens that an answer without a close limit is expected to have: most answers of chats are shorter,
    those with reasoning have some thousand."""
    max_client_requests: Annotated[
        int,
        Setting(
            "--max-client-requests",
            COUNT,
            "requests of one client that are served at once, 0 for no limit; the rest waits",
            least=0,
        ),
    ] = 0
    max_queue: Annotated[
        int,
        Setting(
            "--max-queue",
            COUNT,
            "requests that may wait; one more is answered 429",
            least=0,
            more="A list of prompts is one.",
        ),
    ] = 1024
    queue_timeout_s: Annotated[
        float,
        Setting(
            "--queue-timeout",
            SECONDS,
            "how long a request may wait for an engine",
            above=0,
            more="Then it is answered 503 with `Retry-After`.",
            reloadable=True,
        ),
    ] = 30.0
    refuse_late: Annotated[
        float,
        Setting(
            "--refuse-late",
            "FACTOR",
            "refuse a request whose first token is predicted later than so many times what its client wants"
            " (X-Kvproxy-TTFT-Ms), 0 for never",
            check=_check_late,
            more="With 503 and `Retry-After`. [How](policies.md#goals-for-the-first-token).",
            reloadable=True,
        ),
    ] = 0.0
    max_bodies_mb: Annotated[
        int,
        Setting(
            "--max-bodies-mb",
            MIB,
            "all request bodies in memory together",
            least=1,
            more="[Shared fairly](overload.md).",
        ),
    ] = 1024
    max_client_priority: Annotated[
        int | None,
        Setting(
            "--max-client-priority",
            COUNT,
            "the smallest priority a client may claim, for lower goes first: 0 lets nobody go before those"
            " that claim nothing",
            check=_check_priority,
            by_default="any",
            reloadable=True,
        ),
    ] = None
    client_header: Annotated[
        str | None,
        Setting(
            "--client-header",
            "NAME",
            "the header that tells clients apart when they queue",
            check=check_header,
            by_default="the name of the API key",
        ),
    ] = None
    when_no_prefill: Annotated[
        WhenNoPrefill,
        Setting(
            "--when-no-prefill",
            "",
            "with no usable prefill engine: wait up to --queue-timeout, decode all of it on a decode engine,"
            " or fail at once",
        ),
    ] = WhenNoPrefill.WAIT
