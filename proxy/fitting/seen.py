"""What engines took for probes. Seconds are of one monotonic clock."""

import msgspec


class Prompted(msgspec.Struct, frozen=True):
    """A prompt that an engine computed with nothing beside it."""

    instance: str
    began_at: float
    ended_at: float
    uncached: int
    prompt: int
    held_out: bool


class Stepped(msgspec.Struct, frozen=True):
    """The mean time between two tokens of streams that ran together."""

    instance: str
    sequences: int
    context_tokens: float
    """Of all of them, in the mean."""
    ms: float
    held_out: bool


class HandedOver(msgspec.Struct, frozen=True):
    """A decode leg that fetched a prompt and generated one token."""

    prefill: str
    decode: str
    tokens: int
    ms: float
    held_out: bool


class Spent(msgspec.Struct):
    """What the probes cost."""

    requests: int = 0
    prompt_tokens: int = 0
    """Sent, cached ones included."""
    generated_tokens: int = 0
    seconds: float = 0.0


class Seen(msgspec.Struct):
    """All that was seen."""

    prompted: list[Prompted] = []
    stepped: list[Stepped] = []
    handed: list[HandedOver] = []
    spent: Spent = msgspec.field(default_factory=Spent)
    left_out: list[str] = []
    """Why probes were not sent, or taught nothing, in words."""
