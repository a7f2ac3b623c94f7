"""A rank that answers under another identity than before is another process, with an empty cache.

Pure. If the rank's events have shown a new process meanwhile, that counts: the index has forgotten the old
one already.
"""

from typing import NamedTuple

from proxy.fleet import Instance


class _Seen(NamedTuple):
    """The engine process that a rank's last answer came from."""

    engine_id: str
    epoch: int
    """The epoch of the rank's event source at that time."""


class Processes:
    """The process that each rank was last seen to be."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], _Seen] = {}

    def replaced(self, instance: Instance, rank: int, engine_id: str) -> bool:
        """A rank's answer names its process. Returns whether it is another process than before, and that was
        not known.
        """
        if not instance.sources and len(instance.ranks) == 1:
            return False  # it may have ranks that are not known here, each a process of its own
        source = instance.sources.get(rank)
        now = _Seen(engine_id, source.epoch if source is not None else 0)
        before = self._seen.get((instance.address, rank))
        self._seen[instance.address, rank] = now
        return before is not None and before.engine_id != engine_id and before.epoch == now.epoch

    def forget(self, instance: Instance) -> None:
        """Forget an instance's processes: an engine that comes back at its address is checked anyway."""
        for rank in instance.ranks:
            self._seen.pop((instance.address, rank), None)
