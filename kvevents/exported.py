"""What one rank of an instance holds, as plain values that can be written down and loaded by another process.

The keys and digests mean something only together with the secret of the hasher that made them.
"""

from dataclasses import dataclass, field

from kvevents.block_keys import Keys
from kvevents.events import EngineHash, Reason


@dataclass(slots=True)
class ExportedTier:
    """The blocks of one tier, in two columns of equal length. A key also says how to go on behind it."""

    name: str
    hashes: list[EngineHash]
    keys: Keys
    copies: dict[EngineHash, int] = field(default_factory=dict)
    """How many copies beyond the first; hashes with only one are left out."""


@dataclass(slots=True)
class ExportedOrphan:
    """A block that waits for its parent, with its copies by tier."""

    engine_hash: EngineHash
    parent: EngineHash
    digest: int
    copies: dict[str, int]


@dataclass(slots=True)
class ExportedRank:
    """All that is known of one (instance, rank)."""

    block_size: int
    group_idx: int | None
    tiers: list[ExportedTier]
    orphans: list[ExportedOrphan]
    """The longest waiting first."""
    uncounted: dict[str, Reason] = field(default_factory=dict)
    """The cache groups whose blocks are not counted, and why."""
