"""Each instance of the fleet is checked by one task, at the pace of its circuit; what a check finds is acted
on here.

An engine that answers is asked now and then what it serves and where it publishes its KV events; one that
sleeps has lost what it had cached.
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
"""How often an engine that answers checks is asked what it serves and where it publishes: adapters come and
go."""

ONE_CHECK_FOR_ALL_S = 0.05
"""Many legs fail at once."""


class Watched:
    """One instance under watch."""

    def __init__(self, instance: Instance, *, vital: bool) -> None:
        self.instance = instance
        self.vital = vital
        """Another model at its first check ends kvproxy."""
        self.wake = asyncio.Event()
        self.checked = asyncio.Event()
        """Set once the first check is over, or will not come."""
        self.task: asyncio.Task[None] | None = None
        self.checks = 0
        self.lost_its_cache = False
        """It sleeps so deeply that its cache is lost, and the index knows."""
        self.clears_awake: Mapping[int, int] = {}
        """How often each rank had told of a reset of its cache when it was last known to be awake."""
        self.answers_nothing = False
        """It sleeps so deeply that whatever reaches it waits until it is awake."""
        self.looked_at: float | None = None
        """When it last told what it serves; None if it should be asked now."""


class Rounds:
    """Keeps checking instances."""

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
        """`forget` is told of instances that lost their cache, `end` why kvproxy should not go on.

        `look_every_s`: how often an engine is asked what it serves.
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
        """Check it no more."""
        watched = self._watched.pop(address, None)
        if watched is not None and watched.task is not None:
            watched.task.cancel()
            await asyncio.wait({watched.task})
            watched.checked.set()  # who added it may still wait for a check that will not come

    async def first_check(self, address: str) -> None:
        """Wait until an instance was checked once, or is gone."""
        if (watched := self._watched.get(address)) is not None:
            await watched.checked.wait()

    def wake(self, address: str) -> None:
        """Check an instance soon, and ask it what it serves."""
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
            # From beginning to beginning, so that a slow answer to one question does not put off the next.
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
                self._book.answered(instance)  # it lives, and serves what it did
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
        if instance.status is not Status.UP:  # beside the check: nobody waits for this answer
            self._tasks.create(self._learn_version(instance), name=f"version of {instance.address}")
        await self._lives(watched)

    async def _learn_version(self, instance: Instance) -> None:
        instance.runs(await self._checker.version(instance.address))

    async def _lives(self, watched: Watched) -> None:
        """It serves what it should, unless it sleeps."""
        instance = watched.instance
        if was_up := instance.status is Status.UP:
            self._book.answered(instance)  # it may be long in telling whether it sleeps
        clears = self._feeds.clears(instance) if self._feeds is not None else {}
        if await self._sleepers.asleep(instance):
            self._book.asleep(instance)
            if not watched.lost_its_cache or self._thought_to_have(instance):
                await self._look_at_sleep(watched)
            if watched.answers_nothing:
                # Again and again: legs that were on their way come after it was found so.
                self._engines.give_up(instance.address)
        else:
            watched.lost_its_cache = watched.answers_nothing = False
            watched.clears_awake = clears
            if not was_up:
                self._book.answered(instance)

    async def _look_at_sleep(self, watched: Watched) -> None:
        """If it has lost its cache, that is known from here on.

        Its events tell of it only once it is awake, or in the step that was running when it fell asleep:
        where they have, what they tell after that is right.
        """
        instance = watched.instance
        depth = await self._sleepers.depth(instance)
        if depth is None or depth is Depth.LIGHT:
            return
        if not watched.lost_its_cache:
            watched.lost_its_cache = True
            watched.answers_nothing = depth is Depth.DEEP
            self._forget(instance.address)
        # Again and again: a replay tells of what was there before it slept.
        for rank in self._thought_to_have(instance):
            if self._feeds is not None:
                known = watched.clears_awake.get(rank)
                self._feeds.rebuild(instance, rank, replay=False, unless_cleared_since=known)

    def _thought_to_have(self, instance: Instance) -> Collection[int]:
        """The ranks that blocks are known of."""
        return self._feeds.filled(instance) if self._feeds is not None else ()
