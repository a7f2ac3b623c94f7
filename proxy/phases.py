"""What an instance does, and which of a request's two legs is meant: words of the whole house."""

import enum


class Role(enum.StrEnum):
    """What an instance does."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class Phase(enum.StrEnum):
    """Which of a request's two legs is meant."""

    PREFILL = "prefill"
    DECODE = "decode"
