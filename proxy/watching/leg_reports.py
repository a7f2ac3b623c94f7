"""What legs show of engines is entered in the health book at once, and has the engines checked soon.

Synchronous, with one exception: an engine that can sleep is asked whether it sleeps before a failure counts
against it.
"""

import logging
from collections.abc import Callable, Collection

from proxy.caches.feeds import EventFeeds
from proxy.errors import ConnectFailedError, ConnectTimeoutError, LegError, OurTroubleError
from proxy.fleet import Fleet, Instance, Status
from proxy.tasks import TaskOwner
from proxy.watching.health import HealthBook
from proxy.watching.processes import Processes
from proxy.watching.sleeping import Sleepers

log = logging.getLogger(__name__)


class LegReports:
    """Called by the director; implements `serving.ports.Watch`."""

    def __init__(
        self,
        fleet: Fleet,
        book: HealthBook,
        sleepers: Sleepers,
        processes: Processes,
        feeds: EventFeeds | None,
        tasks: TaskOwner,
        *,
        wake: Callable[[str], None],
        forget: Callable[[str], None],
    ) -> None:
        """`wake`: has an instance checked soon. `forget`: called with instances that lost their cache."""
        self._fleet = fleet
        self._book = book
        self._sleepers = sleepers
        self._processes = processes
        self._feeds = feeds
        self._tasks = tasks
        self._wake = wake
        self._forget = forget

    def leg_failed(self, instance: Instance, error: LegError) -> None:
        """A leg got no complete answer. A refused connection counts at once; after anything else the instance
        is checked.
        """
        if isinstance(error, OurTroubleError):
            return
        if instance.status is Status.ASLEEP:
            self._wake(instance.address)
            return
        if not isinstance(error, ConnectFailedError) or isinstance(error, ConnectTimeoutError):
            self._book.leg_cut(instance, error.words)
        elif instance.status is Status.UP:
            self._book.lost(instance, error.words)
        self._wake(instance.address)

    def suspect(self, instance: Instance) -> None:
        """The instance may be dead, or serve another model, and a request waits to learn it: have it
        checked.
        """
        self._wake(instance.address)

    def leg_began(self, address: str) -> None:
        """A leg began to stream what was asked for."""
        if (instance := self._fleet.get(address)) is not None:
            self._book.began(instance)

    def leg_served(self, address: str) -> None:
        """A leg was answered with what was asked for."""
        if (instance := self._fleet.get(address)) is not None:
            self._book.served(instance)

    def engine_failed(self, address: str) -> None:
        """The engine answered that it failed."""
        if (instance := self._fleet.get(address)) is not None and instance.status is not Status.ASLEEP:
            self._book.engine_failed(instance)

    def others_served(self, addresses: Collection[str]) -> None:
        """Legs failed there, and other instances then served the same request."""
        for address in addresses:
            instance = self._fleet.get(address)
            if instance is None or instance.status is Status.ASLEEP:
                continue
            if self._sleepers.can_sleep(
                instance
            ):  # an engine that falls asleep drops its legs, which is no failure
                self._tasks.create(self._charge(instance), name=f"charge {address}")
            else:
                self._book.others_served(instance)
            self._wake(address)

    async def _charge(self, instance: Instance) -> None:
        if not await self._sleepers.asleep(instance) and self._fleet.get(instance.address) is instance:
            self._book.others_served(instance)

    def process_seen(self, instance: Instance, rank: int, engine_id: str) -> None:
        """An answer names the engine process that it came from; a process other than the last has an empty
        cache.
        """
        if not self._processes.replaced(instance, rank, engine_id):
            return
        log.warning("%s rank %d is another process than before", instance.address, rank)
        self._forget(instance.address)
        if self._feeds is not None:
            self._feeds.suspect(instance, rank)
