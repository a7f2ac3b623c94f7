"""Invariant: all that goes into a model or comes out of it is a value, which can be logged, compared and
replayed.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from proxy.simulation.engine.latency import PROFILES, Profile
from proxy.simulation.engine.request import Remote, Request
from proxy.simulation.engine.scheduler import Plan


class EngineDeadError(Exception):
    """An assertion of the real engine would have failed: the whole engine is gone."""


@dataclass(frozen=True, slots=True)
class EngineShape:
    """The properties of an engine, without its sockets."""

    model: str = "tiny"
    block_size: int = 16
    blocks: int = 4096
    max_model_len: int = 8192
    max_batched_tokens: int = 2048
    max_sequences: int = 256
    max_loras: int = 1
    """The most adapters in one batch."""
    lease_s: float = 30.0
    connector: bool = True
    """Whether a KV connector is configured; without one `kv_transfer_params` mean nothing."""
    recompute: bool = False
    """Whether a request whose pull failed is computed here; otherwise, as by default, it is answered with an
    error."""
    lucky_reads: bool = False
    """Whether a pull from a hold that has ended finds what lies in its blocks now, which is right until they
    are reused. By default it finds garbage, as if they had been: tests must not depend on luck."""
    bidirectional: bool = False
    """Whether answers to decode legs say where their blocks are, as vLLM 0.33 does with
    `bidirectional_kv_xfer`."""
    hash_seed: str = ""
    """Engines with different seeds (PYTHONHASHSEED) name the same content differently."""
    prefix_caching: bool = True
    lookahead: int = 0
    """The tokens behind a block that its hash covers."""
    profile: Profile = field(default_factory=lambda: PROFILES["zero"])


@dataclass(frozen=True, slots=True)
class Pull:
    """Read these blocks of another engine, then call `pulled` (or `pull_failed`)."""

    request_id: str
    remote: Remote
    blocks: tuple[int, ...]
    transfer_s: float


@dataclass(frozen=True, slots=True)
class Release:
    """Tell another engine that its hold will not be read."""

    remote: Remote


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Tell another engine that a hold is still wanted."""

    remote: Remote


@dataclass(frozen=True, slots=True)
class Handshake:
    """Meet the engine of this hold for the first time, then call `peers.met` (or `peers.missed`)."""

    remote: Remote
    takes_s: float


Command = Pull | Release | Heartbeat | Handshake


@dataclass(frozen=True, slots=True)
class Step:
    """A step under way: its chunks and how long it takes."""

    plan: Plan[Request]
    duration_s: float


@dataclass(frozen=True, slots=True)
class Output:
    """One token of a request, or None if the request ended without one. `params`: what a prefill leg hands
    on.
    """

    request: Request
    token: int | None
    context: int
    """The state of the context in which the token was chosen."""
    previous_s: float | None = None
    """When the token before it came out; None for the first."""
    params: dict[str, Any] | None = None


@dataclass(slots=True)
class Stats:
    """Counters since the engine started."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    external_queries: int = 0
    external_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    prompt_by_source: Counter[str] = field(default_factory=Counter)
    generated_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    transfers: int = 0
    transferred_bytes: int = 0
    failed_transfers: int = 0
