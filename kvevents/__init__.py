"""What every engine's prefix cache holds, block by block, known from the engines' own KV-cache events.

Three modules are for users; docs/kvevents.md shows how they are used together. All others are private.

- `kvevents` (this one): events, the prefix index, prompts, and what an observer hears. No sockets and no
  event loop.
- `kvevents.subscriber`: follows one publisher over ZeroMQ and keeps its rank in an index.
- `kvevents.snapshot`: a rank of an index as bytes, for the next process.

The modules in the order in which a batch passes them. Each opens with the sentence it keeps true.

- From the wire: `wire` (sockets; the only module that speaks ZeroMQ), `decoder` (bytes to events), `events`
  (the events as vLLM writes them, and the reasons why one changes nothing).
- In order: `sequence` (judges one number by the one before it), `source` (the state machine of one publisher:
  what is applied, asked for again, forgotten), `source_events` (its inputs and actions), `waiting` (live
  batches during a replay).
- On the event loop: `subscriber` (carries out what `source` decides), `replays` (one replay at a time),
  `probe_clock` (when an idle source is asked), `at_rest` (readings between two batches), `turns` (subscribers
  share the loop with others).
- Into the index: `applier` (one batch, in slices), `together` (single blocks in groups), `prefix_index` (the
  index), `change` (what an event did to it), `block_store` (how blocks go in), `reports` (which blocks are no
  further copies), `engine_cache` (one rank by its engine's hashes), `slots` (bits of slots), `residency`,
  `key_table` and `slot_sets` (which slots each block lies in), `slower_tiers` (what lies behind a prefix).
- Names of blocks: `contents` (one form of what a block holds), `block_keys` (keys that all engines share;
  docs/adr/0001-block-keys.md proves them).
- To the next process: `exported` (a rank as plain values), `snapshot` (as bytes).
- To people: `observer` (what can be counted), `tail` and `__main__` (`python -m kvevents HOST:PORT`).
"""

from kvevents.applier import Index
from kvevents.block_keys import KEY_BITS, BlockHasher, Digests, Keys, Prompt
from kvevents.change import Change
from kvevents.decoder import Decoded, Message, UnreadableMessage, decode, read_live, read_replay
from kvevents.engine_cache import DEFAULT_TIER
from kvevents.events import (
    REPORT_SESSION,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EngineHash,
    Event,
    EventBatch,
    Reason,
)
from kvevents.exported import ExportedRank
from kvevents.observer import NullObserver, Observer
from kvevents.prefix_index import PrefixIndex
from kvevents.slots import Slot
from kvevents.source_events import Checkpoint, Resumed, RetireReason, State

__all__ = [
    "DEFAULT_TIER",
    "KEY_BITS",
    "REPORT_SESSION",
    "AllBlocksCleared",
    "BlockHasher",
    "BlockRemoved",
    "BlockStored",
    "Change",
    "Checkpoint",
    "Decoded",
    "Digests",
    "EngineHash",
    "Event",
    "EventBatch",
    "ExportedRank",
    "Index",
    "Keys",
    "Message",
    "NullObserver",
    "Observer",
    "PrefixIndex",
    "Prompt",
    "Reason",
    "Resumed",
    "RetireReason",
    "Slot",
    "State",
    "UnreadableMessage",
    "decode",
    "read_live",
    "read_replay",
]
