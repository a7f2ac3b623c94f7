"""The KV-cache events of a vLLM engine, as they are on the wire since vLLM 0.24: maps with a `type` key.

`kvevents.decoder` also reads the arrays older engines write; both end up as these structs. Fields that
change what a block holds are kept; what only describes a block (locality, ownership, session) is skipped.
"""

from enum import StrEnum
from typing import Annotated, Any

import msgspec

EngineHash = int | Annotated[bytes, msgspec.Meta(max_length=64)]
"""An engine's own name for a block: 64 bits or 32 bytes. It is a handle, never compared between engines. 64
bytes are the longest digest in common use; a longer hash makes a broken event."""

_Name = Annotated[str, msgspec.Meta(max_length=256)]


REPORT_SESSION = "kvproxy-cache-report"
"""The `session_id` that every kvproxy gives its requests for a full report (vLLM's `kv_cache_report_mode`).

vLLM writes it into every BlockStored that such a request causes, so that a listener knows a reported block to
be no further copy. Older engines leave it out.
"""


class BlockStored(msgspec.Struct, frozen=True, omit_defaults=True, tag="BlockStored", gc=False):
    """A run of full blocks, each the child of the one before it, now lies in a tier of the engine's cache."""

    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None
    """The block before the run; None if the run begins a prompt."""
    token_ids: list[int]
    """`block_size * len(block_hashes)` of them; anything else is a misaligned run."""
    block_size: int
    lora_id: int | None = None
    """The adapter's number inside that one engine."""
    medium: _Name | None = None
    """The tier: "GPU" is the engine's own cache, on a CPU engine too."""
    lora_name: _Name | None = None
    extra_keys: list[Any] | None = None
    """One entry a block: None, or a list of the LoRA name, multi-modal keys, the cache salt (first block)."""
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    """How the cache group attends; only "full_attention" groups hold the whole prefix."""
    kv_cache_spec_sliding_window: int | None = None
    session_id: Any = None
    """Of the request that caused it: text, or None."""
    lookahead_token_ids: list[list[int]] | None = None
    """One list a block: the tokens that follow it in its prompt and that its hash covers, too.

    vLLM has them since 0.33 for draft models that look ahead (EAGLE: one token; MTP with several modules: one
    each), and only without a KV connector. Such a block is found again only where these tokens follow it.
    """

    @property
    def lookahead(self) -> int:
        """How many tokens behind each block its hash covers; 0 for most engines."""
        return len(self.lookahead_token_ids[0]) if self.lookahead_token_ids else 0

    @property
    def is_report(self) -> bool:
        """Whether it may tell of blocks that have not been stored again, because somebody asked for a full
        report.
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
    """Announced without tokens (offload tiers do that): nothing to key it by."""
    MISALIGNED = "misaligned"
    """Tokens, extra keys or the tokens that follow do not divide evenly over the blocks."""
    CACHE_GROUP = "cache_group"
    """Of a cache group that does not hold whole prefixes, or that holds what the counted group holds."""
    CACHE_KIND = "cache_kind"
    """Of a cache group of a kind we do not know, so it is not counted."""
    BLOCK_SIZE = "block_size"
    """Another block size than the instance's other blocks have, or one that no engine has."""
    LOOKAHEAD = "lookahead"
    """Another number of tokens behind each block counts than behind the instance's other blocks, or more than
    any engine has."""
    TOKENS = "tokens"
    """A token id below 0 or above 32 bits."""
    EXTRA_KEYS = "extra_keys"
    """Extra keys nested too deeply or of an unknown kind."""
    UNKNOWN_BLOCK = "unknown_block"
    """Removed, but never announced to us."""
    ORPHAN_EVICTED = "orphan_evicted"
    """It waited for its parent until too many others did."""
    TIERS = "tiers"
    """In a further tier of a rank that has as many as any engine."""
    FULL = "full"
    """More blocks than one source may have in the index."""
