"""Changes that no request and no check would show are looked for at intervals, and logged once."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from kvevents import Reason
from proxy.fleet import Fleet, Instance, Status
from proxy.logs import listed
from proxy.phases import Phase

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25

SILENT_S = 10.0
"""Seconds that an engine that is up may be without a publisher before it is logged.

Connections to publishers take a second or two, and ZeroMQ tries a failed one again within ten."""


class FeedStates(Protocol):
    """What can be asked of followed ranks; the event feeds answer it."""

    def silences(self, instance: Instance) -> dict[int, str]:
        """The followed ranks that no publisher is connected for, each with the reason in words."""
        ...

    def uncounted(self, instance: Instance) -> dict[str, Reason]:
        """The cache groups of an instance that are not counted, in words, each with the reason."""
        ...


class Changes:
    """Logs when readiness is lost and regained, when an index becomes exact or stops to be, and which engines
    are silent.

    Also, once for each instance, which groups of its cache are not counted.
    """

    def __init__(
        self,
        fleet: Fleet,
        feeds: FeedStates | None,
        clock: Callable[[], float],
        *,
        silent_s: float = SILENT_S,
    ) -> None:
        """`clock`: seconds that never go back. `silent_s`: as the constant of this name."""
        self._fleet = fleet
        self._feeds = feeds
        self._clock = clock
        self._silent_s = silent_s
        self._ready: bool | None = None
        """None until kvproxy was ready for the first time, which the start logs."""
        self._missing: tuple[Phase, ...] = ()
        self._exact: dict[tuple[str, int], bool] = {}
        self._silent_since: dict[tuple[str, int], float] = {}
        self._uncounted: dict[str, set[str]] = {}

    async def tell(self) -> None:
        """Call `look` at intervals, without end."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Log what has changed since the last look."""
        self._look_at_readiness()
        ranks = [(instance, rank) for instance in self._fleet for rank in instance.ranks]
        known = {(instance.address, rank) for instance, rank in ranks}
        for known_of in (self._exact, self._silent_since):
            for gone in known_of.keys() - known:
                del known_of[gone]
        for instance, rank in ranks:
            self._look_at_index(instance, rank)
        if self._feeds is not None:
            for instance in self._fleet:
                self._look_at_silence(instance, self._feeds.silences(instance))
                self._look_at_groups(instance, self._feeds.uncounted(instance))
            for left in self._uncounted.keys() - {instance.address for instance in self._fleet}:
                del self._uncounted[left]

    def _look_at_readiness(self) -> None:
        missing = self._fleet.missing  # not the words, which change with each instance
        if missing and missing != self._missing and self._ready is not None:
            log.warning("not ready: %s", self._fleet.not_ready_because)
            self._ready = False
        elif not missing:
            if self._ready is False:
                log.info("ready again")
            self._ready = True
        self._missing = missing

    def _look_at_index(self, instance: Instance, rank: int) -> None:
        state = instance.index_state(rank)
        exact, before = state == "exact", self._exact.get((instance.address, rank), False)
        self._exact[instance.address, rank] = exact
        if exact is not before:
            was = "" if exact else ", not exact any more"
            if was and instance.status is Status.ASLEEP:
                was += " (it is asleep)"
            log.info("%s %s rank %d: index %s%s", instance.role, instance.address, rank, state, was)

    def _look_at_groups(self, instance: Instance, groups: dict[str, Reason]) -> None:
        new = groups.keys() - self._uncounted.setdefault(instance.address, set())
        self._uncounted[instance.address] |= new
        unknown = sorted(words for words in new if groups[words] is Reason.CACHE_KIND)
        if unknown:
            log.warning(
                "%s %s: its KV cache has groups of a kind kvproxy does not know (%s): they are not counted, "
                "and what is predicted for it is an upper bound",
                instance.role,
                instance.address,
                listed(unknown),
            )
        if known := sorted(new - set(unknown)):
            log.info(
                "%s %s serves a hybrid model: what is predicted for it is an upper bound (not counted: %s)",
                instance.role,
                instance.address,
                listed(known),
            )

    def _look_at_silence(self, instance: Instance, silences: dict[int, str]) -> None:
        now = self._clock()
        for rank in instance.ranks:
            key = (instance.address, rank)
            if rank not in silences or instance.status is not Status.UP:
                self._silent_since.pop(key, None)
                instance.is_heard(rank)
            elif now - self._silent_since.setdefault(key, now) >= self._silent_s and instance.fell_silent(
                rank, silences[rank]
            ):
                log.warning(
                    "%s %s rank %d: %s: check its event address and port, and the network;"
                    " until then it is chosen by load alone",
                    instance.role,
                    instance.address,
                    rank,
                    silences[rank],
                )
