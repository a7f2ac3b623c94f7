"""A rank whose index was wrong is logged once, built anew when that is due, and logged again when it is
trusted.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from proxy.caches.accuracy import Accuracy, Change, FollowedSource
from proxy.caches.trust import Step
from proxy.fleet import Fleet, Instance

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25

_TURNS_TO_HEAR = 8
"""Turns of the event loop from an event's arrival until it is in the index, at most.

Where requests keep the loop busy each turn takes long, and an index that seems wrong may only be late."""
_LATE_LOOKS = 20  # the longest turn of the loop counts for so many looks


class Rebuilder(Protocol):
    """Has ranks built anew; the event feeds do."""

    def rebuild(self, instance: Instance, rank: int, *, replay: bool) -> None:
        """Forget what is known of a rank, and build it anew."""
        ...


class Believing:
    """Acts on the changes of trust that `Accuracy` finds."""

    def __init__(
        self, fleet: Fleet, accuracy: Accuracy, feeds: Rebuilder, clock: Callable[[], float]
    ) -> None:
        """`clock` MUST be the clock by which legs are compared."""
        self._fleet = fleet
        self._accuracy = accuracy
        self._feeds = feeds
        self._clock = clock
        self._late_s: deque[float] = deque(maxlen=_LATE_LOOKS)
        self._judged_until = 0.0

    async def keep_looking(self) -> None:
        """Call `look` at intervals, without end."""
        late_s = 0.0
        while True:
            self.look(late_s)
            due_at = self._clock() + LOOK_EVERY_S
            await asyncio.sleep(LOOK_EVERY_S)
            late_s = self._clock() - due_at

    def look(self, late_s: float = 0.0) -> None:
        """Act on what is due; `late_s`: by how many seconds the event loop was late with this call."""
        self._late_s.append(late_s)
        heard_until = self._clock() - _TURNS_TO_HEAR * max(self._late_s)
        self._judged_until = max(self._judged_until, heard_until)
        for change in self._accuracy.look(self._judged_until, self._source):
            instance = self._fleet.get(change.instance)
            if instance is not None:
                self._act(instance, change)

    def _source(self, address: str, rank: int) -> FollowedSource | None:
        instance = self._fleet.get(address)
        return instance.sources.get(rank) if instance is not None else None

    def _act(self, instance: Instance, change: Change) -> None:
        rank = change.rank
        match change.step:
            case Step.LOST:
                log.warning(
                    "%s %s rank %d: index not trusted: it said that %d blocks of a prompt were cached, the "
                    "engine reported %d; it is built anew %s, until then the rank is chosen by load alone",
                    instance.role,
                    instance.address,
                    rank,
                    change.promised,
                    change.reported,
                    f"in {change.rebuild_in_s:.0f} s" if change.rebuild_in_s else "now",
                )
            case Step.REGAINED:
                log.info("%s %s rank %d: index trusted again", instance.role, instance.address, rank)
            case Step.REPLAY | Step.START_OVER:
                self._feeds.rebuild(instance, rank, replay=change.step is Step.REPLAY)
