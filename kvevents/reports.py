"""A block that an engine reports again is not counted as one more copy of it.

An engine that is asked for a full report (vLLM's `kv_cache_report_mode`) announces blocks that it has had for
long, by the same events as blocks that it stores. If a reported block counted as a copy, it would be believed
to be there for ever. If a real copy does not count, it is only forgotten too early.
"""

from kvevents.events import BlockStored


class Reports:
    """Which stored runs count as further copies, by (instance, rank)."""

    def __init__(self) -> None:
        self._marks: dict[
            tuple[str, int], bool
        ] = {}  # of the ranks that are asked for reports: whether their engine marks them

    def expect(self, instance: str, rank: int) -> None:
        """The engine is asked for a report: until it is found to mark reports, no block of it counts
        twice.
        """
        self._marks.setdefault((instance, rank), False)

    def may_repeat(self, instance: str, rank: int, event: BlockStored) -> bool:
        """Whether the blocks of a run may be known already without being further copies."""
        if event.is_report:
            self._marks[instance, rank] = True
            return True
        return bool(self._marks) and not self._marks.get((instance, rank), True)

    def cleared(self, instance: str, rank: int) -> None:
        """The rank's cache is empty, so no block can be reported again."""
        if not self._marks.get((instance, rank), True):
            del self._marks[instance, rank]

    def retire(self, instance: str, rank: int | None) -> None:
        """Forget a rank, or all ranks of an instance."""
        for at in [at for at in self._marks if at[0] == instance and rank in {None, at[1]}]:
            del self._marks[at]
