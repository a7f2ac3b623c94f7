"""What kvproxy does with more requests than its engines should get, or with no prefill instance to give them to."""

import enum
import re

import msgspec

from proxy.config.checks import check_least, check_seconds
from proxy.errors import ConfigError

PRIORITIES_BELOW = 1 << 63
"""Engines read priorities as numbers of 64 bits."""


class WhenNoPrefill(enum.StrEnum):
    """What becomes of a request when no prefill instance is usable."""

    WAIT = "wait"
    """It waits in the queue, until the queue's deadline."""
    DECODE = "decode"
    """A decode instance serves all of it."""
    FAIL = "fail"
    """It is refused at once."""


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """How much an instance gets at once, and how the rest waits."""

    max_prefill_tokens: int = 0
    """Outstanding tokens of one instance's prefill legs; 0 for no limit. An idle instance takes any request."""
    max_decode_tokens: int = 0
    """The same of its decode legs, with the tokens they are expected to generate."""
    expected_answer_tokens: int = 512
    """How long an answer is expected to become that may be longer: most chats' answers end before, those that reason
    first need some thousand."""
    max_client_requests: int = 0
    """Requests of one client that are served at once; 0 for no limit. The rest waits."""
    max_client_priority: int | None = None
    """The smallest priority a client may claim, since lower goes first; None: any."""
    max_queue: int = 1024
    """Requests that wait; one more is refused."""
    queue_timeout_s: float = 30.0
    """How long one may wait."""
    client_header: str | None = None
    """The header that tells clients apart, for fairness; None: the name of the API key."""
    max_bodies_mb: int = 1024
    """All request bodies in memory together, in MiB."""
    when_no_prefill: WhenNoPrefill = WhenNoPrefill.WAIT

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check_least("--max-prefill-tokens", self.max_prefill_tokens, 0)
        check_least("--max-decode-tokens", self.max_decode_tokens, 0)
        check_least("--expected-answer-tokens", self.expected_answer_tokens, 1)
        check_least("--max-client-requests", self.max_client_requests, 0)
        if self.max_client_priority is not None and abs(self.max_client_priority) >= PRIORITIES_BELOW:
            raise ConfigError(f"--max-client-priority {self.max_client_priority} is more than engines take")
        check_least("--max-queue", self.max_queue, 0)
        check_seconds("--queue-timeout", self.queue_timeout_s)
        check_least("--max-bodies-mb", self.max_bodies_mb, 1)
        if self.client_header is not None and not re.fullmatch(
            r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", self.client_header
        ):
            raise ConfigError(f"--client-header {self.client_header!r} is not the name of a header")
