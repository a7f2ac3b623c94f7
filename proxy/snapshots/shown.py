"""What `/status` shows of snapshots on disk."""

from typing import Annotated

from kvevents import Resumed
from proxy.shown import Count, Seconds, Shown, says


class StateDirShown(Shown, frozen=True, kw_only=True):
    """What is written to --state-dir of the engines' caches."""

    interval_s: Annotated[float, says("--state-interval.")]
    last_written_s: Annotated[Seconds | None, says("Seconds since a snapshot was written.")]
    snapshots: Annotated[Count, says("How many are on disk.")]
    bytes: Count
    failed: Annotated[str | None, says("Why one could not be written last time.")]


class SnapshotShown(Shown, frozen=True, kw_only=True):
    """The snapshot of a rank."""

    restored: Annotated[
        Resumed, says("What became of the snapshot that was there when the rank was followed.")
    ]
    why: Annotated[str | None, says("Why it is stale, or could not be read.")]
    restored_blocks: Annotated[Count | None, says("Blocks that were restored; null if none were.")]
    age_s: Annotated[
        Seconds | None,
        says("How long ago what is on disk was all that is known; null until that was so."),
    ]
    blocks: Annotated[Count, says("Blocks in the snapshot on disk.")]
    bytes: Count
    failed: Annotated[str | None, says("Why it could not be written last time.")]
