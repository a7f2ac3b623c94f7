"""Each instance that is up is asked for its gauges once in an interval, one after the other, and never again
before it has answered.

What it answers counts all sequences there, those of other routers included. How many of them are ours is
known beside it: those that were there as it was asked, and those that were sent until it answered. Questions
have tasks of their own, so that no check waits for one; an engine that does not answer is as it was.
"""

import asyncio
from collections.abc import Callable

from proxy.errors import LegError
from proxy.fleet import Fleet, Instance, Status
from proxy.fleet.gauges import Gauges
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.asking import Asker, ask
from proxy.upstream.engine_api.metrics import BUSY


class Scrapes:
    """Asks the instances of a fleet for their gauges."""

    def __init__(
        self,
        fleet: Fleet,
        engines: Asker,
        tasks: TaskOwner,
        clock: Callable[[], float],
        *,
        every_s: float,
        timeout_s: float,
        told: Callable[[str, Gauges], None],
    ) -> None:
        """`every_s`: seconds between two questions to an instance; `told`: called with what one has told,
        once that is kept there; it MUST NOT raise.
        """
        self._fleet = fleet
        self._engines = engines
        self._tasks = tasks
        self._clock = clock
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._told = told
        self._asked: set[str] = set()
        """Of whom an answer is awaited."""

    async def keep_asking(self) -> None:
        """Ask again and again."""
        while True:
            due = [
                each for each in self._fleet if each.status is Status.UP and each.address not in self._asked
            ]
            for instance in due:
                self._asked.add(instance.address)
                self._tasks.create(self._ask(instance), name=f"gauges of {instance.address}")
                await asyncio.sleep(self._every_s / len(due))
            if not due:
                await asyncio.sleep(self._every_s)

    async def _ask(self, instance: Instance) -> None:
        address, ours = instance.address, instance.fullness
        own, sent_before = ours.sequences, ours.all_sequences
        try:
            busy = await ask(self._engines, address, BUSY, self._timeout_s)
        except LegError:
            return
        finally:
            self._asked.discard(address)
        if self._fleet.get(address) is not instance or instance.status is not Status.UP:
            return
        own += ours.all_sequences - sent_before
        gauges = Gauges(
            self._clock(), busy.running, busy.waiting, busy.kv_use, own, busy.adapter_slots, busy.adapters
        )
        instance.told_gauges(gauges)
        self._told(address, gauges)
