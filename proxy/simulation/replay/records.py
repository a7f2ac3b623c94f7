"""Each request of a workload has one record, and each record one end."""

from enum import StrEnum


class End(StrEnum):
    """What became of a request."""

    SERVED = "served"
    REFUSED = "refused"
    """It was not let in, or not in time."""
    FAILED = "failed"
    """Every attempt that it may have has failed."""


class Record:
    """What happened to one request. Seconds since the run began."""

    __slots__ = (
        "asked_s",
        "attempts",
        "bypassed",
        "decided_ns",
        "decode_on",
        "end",
        "ended_s",
        "external_tokens",
        "first_token_s",
        "input_tokens",
        "output_tokens",
        "prefill_on",
        "reused_tokens",
        "waited_s",
    )

    def __init__(self, asked_s: float, input_tokens: int, output_tokens: int) -> None:
        self.asked_s = asked_s
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.end: End | None = None
        self.attempts = 0
        self.decided_ns = 0
        """What it took to let it in, of this machine's time."""
        self.waited_s = 0.0
        """In the router's queue."""
        self.prefill_on = ""
        self.decode_on = ""
        self.bypassed = False
        """Whether a decode instance served all of it."""
        self.reused_tokens = 0
        """Of the prompt, where it was computed."""
        self.external_tokens = 0
        """Transferred to the decode instance."""
        self.first_token_s = 0.0
        self.ended_s = 0.0

    @property
    def ttft_s(self) -> float:
        """From its arrival to its first token."""
        return self.first_token_s - self.asked_s

    @property
    def whole_s(self) -> float:
        """From its arrival to its last token."""
        return self.ended_s - self.asked_s

    @property
    def tpot_s(self) -> float:
        """Mean time for each token after the first; 0 if there is none."""
        return (self.ended_s - self.first_token_s) / max(1, self.output_tokens - 1)
