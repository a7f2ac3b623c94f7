"""Each instance of the fleet is checked by one task, at the pace of its circuit; what a check finds is acted
on here.

An engine that answers is asked at intervals what it serves and where it publishes its KV events. An engine
that sleeps has lost what it had cached.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping

from proxy.caches.feeds import EventFeeds
from proxy.config import Rules
from proxy.errors import ConfigError
from proxy.fleet import Instance, ModelCard, Status
from proxy.fleet.circuit import JITTER, MAX_PROBE_S, PROBE_FIRST_S
from proxy.happenings import Checked, Tell
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.metrics import Depth
from proxy.watching.checks import Check, Checker, Finding, wrong_model
from proxy.watching.health import HealthBook
from proxy.watching.ports import WatchClient
from proxy.watching.sleeping import Sleepers

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""Seconds between two questions to an engine what it serves and where it publishes: adapters come and go."""

ONE_CHECK_FOR_ALL_S = 0.05
"""The least seconds between two checks of an instance: many legs fail at once, and one check is enough for
all."""


class Watched:
    """An instance that is watched."""

    def __init__(self, instance: Instance, *, vital: bool) -> None:
        self.instance = instance
        self.vital = vital
        """Whether kvproxy ends if the first check finds another model."""
        self.wake = asyncio.Event()
        self.checked = asyncio.Event()
        """Set once the first check is over, or will not happen."""
        self.task: asyncio.Task[None] | None = None
        self.checks = 0
        self.lost_its_cache = False
        """Whether the instance sleeps so deeply that its cache is lost, and the index has forgotten it."""
        self.clears_awake: Mapping[int, int] = {}
        """For each rank, how many of its events had reset its cache when the instance was last known to be
        awake."""
        self.answers_nothing = False
        """Whether the instance sleeps so deeply that each request to it waits until it is awake."""
        self.looked_at: float | None = None
        """When the engine was last asked what it serves; None if it is to be asked now."""


class Rounds:
    """Checks instances again and again."""

    def __init__(
        self,
        rules: Rules,
        engines: WatchClient,
        feeds: EventFeeds | None,
        tell: Tell,
        book: HealthBook,
        sleepers: Sleepers,
        tasks: TaskOwner,
        *,
        forget: Callable[[str], None],
        end: Callable[[ConfigError], None],
        clock: Callable[[], float],
        rng: random.Random,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """`forget`: called with instances that lost their cache. `end`: called with the reason why kvproxy
        must not go on. `look_every_s`: seconds between two questions to an engine what it serves.
        """
        config = rules.now
        self._model = config.model
        self._rules = rules
        self._engines = engines
        self._feeds = feeds
        self._tell = tell
        self._book = book
        self._sleepers = sleepers
        self._tasks = tasks
        self._forget = forget
        self._end = end
        self._clock = clock
        self._rng = rng
        self._look_every_s = look_every_s
        self._checker = Checker(engines, clock, timeout_s=config.health.timeout_s)
        self._watched: dict[str, Watched] = {}

    def begin(self, instance: Instance, *, vital: bool) -> None:
        """Check an instance from now on."""
        watched = self._watched[instance.address] = Watched(instance, vital=vital)
        watched.task = self._tasks.create(self._keep_watching(watched), name=instance.address)

    async def end(self, address: str) -> None:
        """Check an instance no more."""
        watched = self._watched.pop(address, None)
        if watched is not None and watched.task is not None:
            watched.task.cancel()
            await asyncio.wait({watched.task})
            watched.checked.set()  # whoever added it may still wait for a check that will not happen

    async def first_check(self, address: str) -> None:
        """Wait until an instance was checked once, or was removed."""
        if (watched := self._watched.get(address)) is not None:
            await watched.checked.wait()

    def wake(self, address: str) -> None:
        """Check an instance soon, and ask the engine what it serves."""
        if (watched := self._watched.get(address)) is not None:
            watched.wake.set()

    async def _keep_watching(self, watched: Watched) -> None:
        instance = watched.instance
        while True:
            interval_s = self._rules.health.interval_s
            apart_s = min(PROBE_FIRST_S, interval_s)
            watched.wake.clear()
            begun_at = self._clock()
            await self._check(watched)
            watched.checked.set()
            if instance.status is Status.REFUSED:
                pause_s = MAX_PROBE_S * self._rng.uniform(1 - JITTER, 1 + JITTER)
            else:
                pause_s = instance.breaker.pause_s(self._clock(), interval_s)
            # Measured between beginnings, so that a slow answer to one question does not put off the next.
            due_at = begun_at + max(pause_s, apart_s)
            try:
                async with asyncio.timeout(max(0.0, due_at - self._clock())):
                    await watched.wake.wait()
            except TimeoutError:
                continue
            watched.looked_at = None
            await asyncio.sleep(max(ONE_CHECK_FOR_ALL_S, begun_at + apart_s - self._clock()))

    async def _check(self, watched: Watched) -> None:
        instance = watched.instance
        watched.checks += 1
        check = await self._checker.alive(instance.address)
        self._tell(Checked(instance.address, check.finding))
        if check.finding is not Finding.ANSWERED:
            self._book.checked(instance, check)
        elif (
            instance.status in {Status.UP, Status.ASLEEP}
            and watched.looked_at is not None
            and self._clock() - watched.looked_at < self._look_every_s
        ):
            await self._lives(watched)
        else:
            await self._look(watched)

    async def _look(self, watched: Watched) -> None:
        """Find out what an engine that lives serves, and where it publishes."""
        instance = watched.instance
        cards = await self._checker.served(instance.address)
        if isinstance(cards, Check):
            if cards.finding is not Finding.BUSY:
                self._book.checked(instance, cards)
            elif instance.status is Status.UP:
                self._book.answered(instance)  # it lives, and still serves the same
                self._book.unlisted(instance, cards.words)
            elif instance.status is not Status.ASLEEP:
                self._book.checked(instance, Check(Finding.MISSED, cards.words))
            return
        wrong = wrong_model(cards, self._model)
        if wrong is None:
            await self._came_up(watched, cards)
            watched.looked_at = self._clock()
            return
        wrong = f"{instance.role} {instance.address} {wrong}"
        if watched.vital and watched.checks == 1:
            self._end(ConfigError(f"{wrong}: start it with --served-model-name, or change --model"))
        elif instance.status is not Status.REFUSED:
            instance.was_refused(wrong)
            log.warning("%s: refused until it does", wrong)

    async def _came_up(self, watched: Watched, cards: list[ModelCard]) -> None:
        instance = watched.instance
        instance.listed(cards, self._clock())
        if self._feeds is not None:
            await self._feeds.follow(instance)
            if instance.status is Status.DOWN:
                for rank in instance.ranks:
                    self._feeds.suspect(instance, rank)
        if instance.status is not Status.UP:  # in a task of its own: the check does not wait for this answer
            self._tasks.create(self._learn_version(instance), name=f"version of {instance.address}")
        await self._lives(watched)

    async def _learn_version(self, instance: Instance) -> None:
        instance.runs(await self._checker.version(instance.address))

    async def _lives(self, watched: Watched) -> None:
        """The engine lives and serves the right model; find out whether it sleeps."""
        instance = watched.instance
        if was_up := instance.status is Status.UP:
            self._book.answered(instance)  # the answer whether it sleeps may take long
        clears = self._feeds.clears(instance) if self._feeds is not None else {}
        if await self._sleepers.asleep(instance):
            self._book.asleep(instance)
            if not watched.lost_its_cache or self._thought_to_have(instance):
                await self._look_at_sleep(watched)
            if watched.answers_nothing:
                # At each check: legs that were under way come after the engine was found asleep.
                self._engines.give_up(instance.address)
        else:
            watched.lost_its_cache = watched.answers_nothing = False
            watched.clears_awake = clears
            if not was_up:
                self._book.answered(instance)

    async def _look_at_sleep(self, watched: Watched) -> None:
        """Find out whether a sleeping engine has lost its cache, and forget it then.

        The engine's events say so only after it woke, or in the step that ran when it fell asleep. Once they
        have said so, what they say after that is right.
        """
        instance = watched.instance
        depth = await self._sleepers.depth(instance)
        if depth is None or depth is Depth.LIGHT:
            return
        if not watched.lost_its_cache:
            watched.lost_its_cache = True
            watched.answers_nothing = depth is Depth.DEEP
            self._forget(instance.address)
        # At each check: a replay brings back what was there before the sleep.
        for rank in self._thought_to_have(instance):
            if self._feeds is not None:
                known = watched.clears_awake.get(rank)
                self._feeds.rebuild(instance, rank, replay=False, unless_cleared_since=known)

    def _thought_to_have(self, instance: Instance) -> Collection[int]:
        """The ranks of which any blocks are known."""
        return self._feeds.filled(instance) if self._feeds is not None else ()
