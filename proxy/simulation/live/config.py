"""Invariant: a stand-in depends on its configuration alone: the same one gives the same engine."""

from dataclasses import dataclass, field
from typing import Literal

from proxy.simulation.engine.latency import PROFILES, Profile
from proxy.simulation.engine.values import EngineShape
from proxy.simulation.live.publisher import EventForm

VERSION = "0.32.0"
"""The vLLM release that a stand-in behaves like, unless its configuration says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StandInConfig:
    """One stand-in engine. Ports of 0 are chosen by the system; ports of None are not opened.

    With several ranks each has its own event, replay and side-channel port: the given one plus its rank.
    """

    port: int = 0
    host: str = "127.0.0.1"
    model: str = "tiny"
    version: str = VERSION
    """The vLLM release that it says it is."""
    root: str | None = None
    """The directory of the model, as in `/v1/models`; None if it was started by name."""
    loras: tuple[str, ...] = ()
    connector: bool = True
    """Whether a KV connector (NIXL, pull mode) is configured; the roles of such engines change nothing."""
    ranks: int = 1
    block_size: int = 16
    blocks: int = 4096
    max_model_len: int = 8192
    max_batched_tokens: int = 2048
    max_sequences: int = 256
    max_loras: int = 1
    """The most adapters in one batch, as --max-loras."""
    max_queued_requests: int | None = None
    """The most unfinished requests of all ranks, as --max-num-queued-reqs; None: any number."""
    max_queued_tokens: int | None = None
    """The prompt tokens of requests without a first token at which all are refused, as
    --max-num-queued-tokens; None: any number."""
    profile: Profile = field(default_factory=lambda: PROFILES["zero"])
    eos_every: int = 0
    """Answers end by themselves after that many tokens on average; 0: only at their limit."""
    hash_seed: str = ""
    """Engines with different seeds name the same content differently, as with PYTHONHASHSEED."""
    prefix_caching: bool = True
    lookahead: int = 0
    """The tokens behind a block that its hash covers, for a draft model that looks ahead (EAGLE: 1); since
    vLLM 0.33, and only without a connector."""
    lease_s: float = 30.0
    recompute: bool = False
    lucky_reads: bool = False
    bidirectional: bool = False
    """Whether answers to decode legs, and last chunks of their streams, carry `kv_transfer_params`, as vLLM
    0.33's may."""
    side_port: int = 0
    side_timeout_s: float = 10.0
    events: int | None = 0
    """The port events are published on."""
    replay: int | None = 0
    """The port replays are asked of."""
    events_connect: str | None = None
    """Publish by connecting to this address instead of binding a port."""
    sources_form: Literal["object", "array", "other"] = "object"
    """The form of its answer where it publishes: ranks as members (vLLM 0.32), a list of them, or a form that
    nobody knows."""
    topic: str = "kv-events"
    buffer_steps: int = 10_000
    hwm: int = 100_000
    event_form: EventForm = field(default_factory=EventForm)
    clock_offset_s: float = 0.0
    """Seconds by which the clock that stamps events is ahead."""
    greeting: str = ""
    """The text that the chat template puts before every conversation, as many do."""
    tool_parser: bool = False
    """Whether calls of tools are understood, as with --enable-auto-tool-choice --tool-call-parser."""
    excludes_tools: bool = False
    """Whether tools that must not be called are left out of prompts, as with
    --exclude-tools-when-tool-choice-none."""
    images: bool = False
    """Whether the model takes images: each is 40 tokens that no other image has, wherever it stands."""
    docs: bool = True
    """Whether /openapi.json exists; not with --disable-fastapi-docs."""
    more_members: tuple[str, ...] = ()
    """Members of requests that this engine knows and vLLM 0.32 does not."""
    api_key: str | None = None
    """The key that all of /v1 needs, as with --api-key; None: none."""
    prompt_tokens_details: bool = True
    """Whether `usage` has cached tokens, as with --enable-prompt-tokens-details."""
    request_metrics: bool = False
    """Whether answers carry `metrics`, as with --enable-per-request-metrics."""
    load_tracking: bool = False
    """Whether /load counts, as with --enable-server-load-tracking; without it the answer is always 0."""
    request_id_headers: bool = False
    """Whether answers carry X-Request-Id, as with --enable-request-id-headers."""
    any_origin: bool = False
    """Whether browsers may read answers from any page, as with --allowed-origins '["*"]'."""
    dev_mode: bool = True
    """Whether /reset_prefix_cache exists, as with VLLM_SERVER_DEV_MODE=1."""
    lora_updates: bool = False
    """Whether adapters can be loaded and unloaded at run time, as with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."""
    scale_out: bool = False
    """Whether token ids can be generated from token ids, as with --enable-scale-out."""
    responses_store: bool = False
    """Whether responses are stored, as with VLLM_ENABLE_RESPONSES_API_STORE=1."""
    keep_alive_s: float = 5.0
    admin: int | None = None
    """The port of the admin endpoint that commands faults."""

    def __post_init__(self) -> None:
        """Raises ValueError for an engine that could not start: its longest request must fit the cache, for
        example.
        """
        if (self.blocks - 1) * self.block_size < self.max_model_len:
            raise ValueError(
                f"max_model_len {self.max_model_len} does not fit {self.blocks - 1} blocks of "
                f"{self.block_size}"
            )
        if self.lookahead and self.connector:
            raise ValueError("blocks look ahead only in engines without a KV connector")

    def shape(self) -> EngineShape:
        """The properties for the engine model."""
        return EngineShape(
            model=self.model,
            block_size=self.block_size,
            blocks=self.blocks,
            max_model_len=self.max_model_len,
            max_batched_tokens=self.max_batched_tokens,
            max_sequences=self.max_sequences,
            max_loras=self.max_loras,
            lease_s=self.lease_s,
            connector=self.connector,
            recompute=self.recompute,
            lucky_reads=self.lucky_reads,
            bidirectional=self.bidirectional,
            hash_seed=self.hash_seed,
            prefix_caching=self.prefix_caching,
            lookahead=self.lookahead,
            profile=self.profile,
        )
