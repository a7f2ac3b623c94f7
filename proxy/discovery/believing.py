"""A rank whose index was wrong is said once, built anew when that is due, and said again when it is believed."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from proxy.accuracy import Accuracy, Change, Source
from proxy.instances import Fleet, Instance
from proxy.trust import Step

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25


class Feeds(Protocol):
    """The part of the event feeds needed here."""

    def rebuild(self, instance: Instance, rank: int, *, replay: bool) -> None:
        """Have what is known of a rank forgotten and built anew."""
        ...


class Believing:
    """Acts on what predictions came to."""

    def __init__(self, fleet: Fleet, accuracy: Accuracy, feeds: Feeds, clock: Callable[[], float]) -> None:
        """`clock` must be the one that legs are compared by."""
        self._fleet = fleet
        self._accuracy = accuracy
        self._feeds = feeds
        self._clock = clock

    async def keep_looking(self) -> None:
        """Look without end."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Do what is due."""
        for change in self._accuracy.look(self._clock(), self._source):
            instance = self._fleet.get(change.instance)
            if instance is not None:
                self._act(instance, change)

    def _source(self, address: str, rank: int) -> Source | None:
        instance = self._fleet.get(address)
        return instance.sources.get(rank) if instance is not None else None

    def _act(self, instance: Instance, change: Change) -> None:
        rank = change.rank
        match change.step:
            case Step.LOST:
                log.warning(
                    "%s %s rank %d: index not trusted: it said that %d blocks of a prompt were cached, the engine"
                    " reported %d; it is built anew %s, until then the rank is chosen by load alone",
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
