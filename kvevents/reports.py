"""A block that an engine reports again is no further copy of it.

An engine that is asked for a full report (vLLM's `kv_cache_report_mode`) tells of blocks that it has had for
long by the same events as of blocks that it stores. Counted as a copy, such a block would be believed in for
ever; a real copy that is not counted is only forgotten too early.
"""

from kvevents.events import BlockStored


class Reports:
    """Which stored runs count as copies, by (instance, rank)."""

    def __init__(self) -> None:
        self._marks: dict[
            tuple[str, int], bool
        ] = {}  # of ranks asked for reports: whether the engine marks them

    def expect(self, instance: str, rank: int) -> None:
        """The engine is asked for a report: until it is found to mark its reports, none of its blocks counts
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
        """The rank's cache is empty: what could be reported again is gone."""
        if not self._marks.get((instance, rank), True):
            del self._marks[instance, rank]

    def retire(self, instance: str, rank: int | None) -> None:
        """Forget a rank, or all ranks of an instance."""
        for at in [at for at in self._marks if at[0] == instance and rank in {None, at[1]}]:
            del self._marks[at]
