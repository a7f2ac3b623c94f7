"""The KV-cache events of a vLLM engine, as they are on the wire since vLLM 0.24: maps with a `type` key.

`kvevents.decoder` also reads the arrays older engines write; both end up as these structs. Fields that
change what a block holds are kept; what only describes a block (locality, ownership, session) is skipped.
"""

from enum import StrEnum
from typing import Annotated, Any

import msgspec

EngineHash = int | Annotated[bytes, msgspec.Meta(max_length=64)]
"""An engine's own name for a block: 64 bits or 32 bytes, never compared between engines.

64 bytes are the longest digest in common use; an event with a longer hash is broken."""

_Name = Annotated[str, msgspec.Meta(max_length=256)]


REPORT_SESSION = "kvproxy-cache-report"
"""The `session_id` that every kvproxy gives its requests for a full report (vLLM's `kv_cache_report_mode`).

vLLM writes it into every BlockStored that such a request causes: a block that is reported so is no further
copy. Older engines leave it out."""


class BlockStored(msgspec.Struct, frozen=True, omit_defaults=True, tag="BlockStored", gc=False):
    """A run of full blocks, each the child of the one before it, now lies in a tier of the engine's cache."""

    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None
    """The block before the run; None if the run begins a prompt."""
    token_ids: list[int]
    """`block_size * len(block_hashes)` token ids; a run with any other number is misaligned."""
    block_size: int
    lora_id: int | None = None
    """The adapter's number inside that one engine."""
    medium: _Name | None = None
    """The tier: "GPU" is the engine's own cache, on a CPU engine too."""
    lora_name: _Name | None = None
    extra_keys: list[Any] | None = None
    """One entry for each block: None, or a list of the LoRA name, multi-modal keys, and the cache salt (first
    block)."""
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    """How the cache group attends; only "full_attention" groups hold the whole prefix."""
    kv_cache_spec_sliding_window: int | None = None
    session_id: Any = None
    """The session of the request that caused the event: text, or None."""
    lookahead_token_ids: list[list[int]] | None = None
    """One list for each block: the tokens that follow it in its prompt and that its hash covers as well.

    vLLM has them since 0.33 for draft models that look ahead (EAGLE: one token; MTP with several modules: one
    each), and only without a KV connector. Such a block is found again only where these tokens follow it."""

    @property
    def lookahead(self) -> int:
        """How many tokens behind each block its hash covers; 0 for most engines."""
        return len(self.lookahead_token_ids[0]) if self.lookahead_token_ids else 0

    @property
    def is_report(self) -> bool:
        """Whether the event belongs to a full report that somebody asked for, so that its blocks may be known
        already.
        """
        return bool(self.session_id == REPORT_SESSION)


class BlockRemoved(msgspec.Struct, frozen=True, omit_defaults=True, tag="BlockRemoved", gc=False):
    """One physical copy of each named block has left a tier."""

    block_hashes: list[EngineHash]
    medium: _Name | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, tag="AllBlocksCleared", gc=False):
    """The engine's prefix cache was reset: nothing is cached on this rank."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """What one scheduler step changed, in order: an array on the wire, its trailing defaults left out."""

    ts: float
    """Seconds since the epoch on the engine's clock."""
    events: list[Event]
    data_parallel_rank: int | None = None


class Reason(StrEnum):
    """Why an event, or some of its blocks, did not change the index."""

    UNREADABLE = "unreadable"
    """A whole message that is no batch."""
    UNKNOWN_TYPE = "unknown_type"
    BROKEN_EVENT = "broken_event"
    """A BlockStored with missing or wrong fields: its blocks are not known."""
    BROKEN_REMOVAL = "broken_removal"
    """A removal or reset with missing or wrong fields, or of an unknown type: blocks that are known may be
    gone."""
    PLACEHOLDER = "placeholder"
    """Announced without tokens, as offload tiers do: no key can be made."""
    MISALIGNED = "misaligned"
    """The tokens, the extra keys or the tokens behind the blocks do not divide evenly over the blocks."""
    CACHE_GROUP = "cache_group"
    """In a cache group that does not hold whole prefixes, or that holds the same as the group that is
    counted."""
    CACHE_KIND = "cache_kind"
    """In a cache group of a kind that is not known here, so it is not counted."""
    BLOCK_SIZE = "block_size"
    """The block size is not that of the instance's other blocks, or is one that no engine has."""
    LOOKAHEAD = "lookahead"
    """The number of tokens behind each block is not that of the instance's other blocks, or is more than any
    engine has."""
    TOKENS = "tokens"
    """A token id below 0 or above 32 bits."""
    EXTRA_KEYS = "extra_keys"
    """Extra keys nested too deeply or of an unknown kind."""
    UNKNOWN_BLOCK = "unknown_block"
    """Removed, but not known here."""
    ORPHAN_EVICTED = "orphan_evicted"
    """Dropped while it waited for its parent, because too many blocks waited."""
    TIERS = "tiers"
    """In one more tier of a rank that has MAX_TIERS already."""
    FULL = "full"
    """The source has as many blocks in the index as one source may have."""
