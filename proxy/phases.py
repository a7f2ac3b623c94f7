"""The words for what an instance does (its role) and for the two legs of a request (their phases)."""

import enum


class Role(enum.StrEnum):
    """Which phases an instance serves."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class Phase(enum.StrEnum):
    """One of the two legs of a request."""

    PREFILL = "prefill"
    DECODE = "decode"
