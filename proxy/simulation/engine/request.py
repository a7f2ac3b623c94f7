"""Invariant: a request's KV exists for exactly its first `computed` tokens; everything later is still to be
computed.

There is no prefill and no decode state: a request is done catching up when one token is missing, then each
step computes that one and samples the next. After a preemption `computed` is 0 and it catches up again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


class Status(Enum):
    """The state of a request."""

    WAITING = "waiting"
    PULLING = "pulling"  # its prompt's KV is on the way from another engine
    RUNNING = "running"
    STOPPED = "stop"
    LENGTH = "length"
    ABORTED = "abort"
    FAILED = "error"

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self in _FINISHED


_FINISHED = {Status.STOPPED, Status.LENGTH, Status.ABORTED, Status.FAILED}


@dataclass(frozen=True, slots=True)
class Sampling:
    """What decides the tokens that come out."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    favourite: int | None = None
    """The token that a large logit bias makes certain; None without one."""
    script: tuple[int, ...] = ()
    """The only tokens that a grammar leaves, after which the answer ends; empty without a grammar."""
    salt: int = 0
    """Mixed into the choice of tokens: 0 for greedy sampling, else made of the seed and the choice's
    number."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A hold on another engine, as `kv_transfer_params` of a decode leg name it."""

    host: str
    port: int
    engine_id: str
    request_id: str
    blocks: tuple[int, ...]

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "Remote | None":
        """Read what a prefill leg answered; None if a key that says where the hold is, is missing."""
        needed = ("remote_host", "remote_port", "remote_engine_id", "remote_request_id")
        if any(params.get(key) is None for key in needed):
            return None
        groups = params.get("remote_block_ids") or [[]]
        return cls(
            host=str(params["remote_host"]),
            port=int(params["remote_port"]),
            engine_id=str(params["remote_engine_id"]),
            request_id=str(params["remote_request_id"]),
            blocks=tuple(groups[0]),
        )


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a prompt."""

    identifier: str
    start: int
    """The position of its first token."""
    tokens: int


class Work(Protocol):
    """What scheduler and cache know of a sequence: how long it is, what of it is computed, and where.

    Its tokens are no part of that, so a sequence may be no more than its length and the names of its blocks.
    """

    id: str
    status: Status
    lora: str | None
    """The adapter that it is for; None for the model itself."""
    pull: Any
    """What its blocks are to be pulled by; None if they are computed here, or once the transfer is under
    way."""
    reads_cache: bool
    full_report: bool
    computed: int
    table: list[int]
    hashes: list[Any]
    """The names of its full blocks, as far as they were asked for."""
    announced: int
    local_hit: int
    external_hit: int
    preemptions: int
    scheduled_s: float | None

    @property
    def length(self) -> int:
        """The number of tokens of the prompt and of what was generated so far."""
        ...

    def start_over(self) -> None:
        """It has lost its blocks: nothing of it is computed any more."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    """One sequence in the engine. `tokens` is the prompt and everything generated so far."""

    id: str
    tokens: list[int]
    sampling: Sampling
    arrived_s: float
    lora: str | None = None
    lora_id: int | None = None
    cache_salt: str | None = None
    pull: Mapping[str, Any] | None = None
    """`kv_transfer_params` of a decode leg, until the transfer is under way."""
    hold: bool = False
    """Whether this is a prefill leg: when it is finished its blocks wait for a decode engine."""
    full_report: bool = False
    """Whether blocks that a hit reuses are announced as well."""
    session_id: str | None = None
    """The session that the request's events name."""
    images: tuple[Image, ...] = ()
    reads_cache: bool = True
    """False when every prompt position must be computed, as prompt logprobs demand."""

    status: Status = Status.WAITING
    stop_reason: int | None = None
    prompt_length: int = field(init=False)
    computed: int = 0
    table: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    announced: int = 0
    """The number of blocks of the table that are in the prefix cache under this request's hashes."""
    context: int | None = None
    """The state of the context over the computed tokens; None until it is read from memory."""
    local_hit: int = 0
    external_hit: int = 0
    preemptions: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    def __post_init__(self) -> None:
        """Remember where the prompt ends."""
        self.prompt_length = len(self.tokens)

    @property
    def length(self) -> int:
        """As `Work`."""
        return len(self.tokens)

    def start_over(self) -> None:
        """As `Work`."""
        self.computed, self.context = 0, None

    @property
    def output(self) -> Sequence[int]:
        """The generated tokens."""
        return self.tokens[self.prompt_length :]

    @property
    def generated(self) -> int:
        """The number of generated tokens."""
        return len(self.tokens) - self.prompt_length
