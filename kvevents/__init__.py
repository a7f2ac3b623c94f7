"""What every engine's cache holds, block by block, told by the engines' own KV events.

No HTTP, no metrics library, no event loop outside `kvevents.subscriber`. A package that must not depend on
ZeroMQ imports from `kvevents.events`, `kvevents.block_keys`, `kvevents.prefix_index` and `kvevents.slots` directly.
"""

from kvevents.applier import Index
from kvevents.block_keys import BlockHasher, Prompt
from kvevents.decoder import Decoded, Message, UnreadableMessage, decode, read_live, read_replay
from kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, EngineHash, Event, EventBatch, Reason
from kvevents.observer import NullObserver, Observer
from kvevents.prefix_index import Change, PrefixIndex
from kvevents.slots import Slot
from kvevents.source_events import Checkpoint, Resumed, State
from kvevents.subscriber import Resume, Subscriber, in_slices
from kvevents.turns import Turns, sweep_away
from kvevents.wire import Context, SourceAddress, open_context

__all__ = [
    "AllBlocksCleared",
    "BlockHasher",
    "BlockRemoved",
    "BlockStored",
    "Change",
    "Checkpoint",
    "Context",
    "Decoded",
    "EngineHash",
    "Event",
    "EventBatch",
    "Index",
    "Message",
    "NullObserver",
    "Observer",
    "PrefixIndex",
    "Prompt",
    "Reason",
    "Resume",
    "Resumed",
    "Slot",
    "SourceAddress",
    "State",
    "Subscriber",
    "Turns",
    "UnreadableMessage",
    "decode",
    "in_slices",
    "open_context",
    "read_live",
    "read_replay",
    "sweep_away",
]
