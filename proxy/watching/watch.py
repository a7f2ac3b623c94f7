"""Each instance of the fleet is watched by one task, from when it is added until it is gone.

The task checks it and has its KV events followed. What is found, by checks and by legs, goes to the book of health.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, Protocol

from proxy.caches.feeds import EventFeeds
from proxy.config import Config, InstanceSpec
from proxy.errors import (
    BadRequestError,
    ConfigError,
    ConflictError,
    ConnectFailedError,
    ConnectTimeoutError,
    KvproxyError,
    LegError,
    NotFoundError,
    OurTroubleError,
)
from proxy.fleet.circuit import JITTER, PROBE_FIRST_S, PROBE_MOST_S, Breaker
from proxy.fleet.instances import Fleet, Instance, Status
from proxy.fleet.model_card import ModelCard
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.metrics import Depth
from proxy.watching import checks, health
from proxy.watching.changes import Changes
from proxy.watching.checks import Check, Checker, Finding, wrong_model
from proxy.watching.health import Accounts, HealthBook
from proxy.watching.membership.members import NOTHING, Present, Restored
from proxy.watching.sleeping import Sleepers
from proxy.watching.startup import StartupError, see_start_through

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""How often an engine that answers checks is asked what it serves and where it publishes: adapters come and go."""
ADD_TIMEOUT_S = 5.0
"""Whoever adds an instance waits for its first answer; a busy one may take longer than a check."""
ONE_CHECK_FOR_ALL_S = 0.05
"""Many legs fail at once."""


class Engines(checks.Engines, health.Engines, Protocol):
    """The part of the engine client needed here."""

    def forget(self, instance: str) -> None:
        """An instance is gone."""
        ...

    def reach(self, spec: InstanceSpec) -> None:
        """Speak to an engine as it is named: with TLS, or without."""
        ...


class Members(Protocol):
    """What outlives the process of who was added, drained and removed."""

    @property
    def restored(self) -> Restored:
        """What becomes of it at this start."""
        ...

    def changed(self, present: Iterable[Present]) -> None:
        """These are to be there after the next start."""
        ...


class _Seen(NamedTuple):
    """The engine process a rank's last answer came from."""

    engine_id: str
    epoch: int
    """Of the rank's event source at that time."""


class _Watched:
    """One instance under watch."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.wake = asyncio.Event()
        self.checked = asyncio.Event()
        """Set once the first check is over."""
        self.task: asyncio.Task[None] | None = None
        self.tries = 0
        self.lost_its_cache = False
        """It sleeps so deeply, and the index knows."""
        self.answers_nothing = False
        """It sleeps so deeply that whatever reaches it waits until it is awake."""
        self.looked_at: float | None = None
        """When it last told what it serves; None if it should be asked now."""


class FleetWatch:
    """Owns the watching of all instances: those configured, and those added and removed later."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        engines: Engines,
        feeds: EventFeeds | None,
        accounts: Accounts,
        *,
        forget: Callable[[str], None] = lambda _address: None,
        members: Members | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """`feeds` is None if KV events are off; `forget` is told of instances that lost their cache.

        `members`: who was changed before kvproxy was restarted; told of every change. None: nothing is kept.
        `clock` must be the one that `engines.heard_at` and the placement go by.
        """
        self._config = config
        self._fleet = fleet
        self._engines = engines
        self._feeds = feeds
        self._accounts = accounts
        self._forget = forget
        self._members = members
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311  # spreads the checks of many routers
        self._checker = Checker(engines, clock, timeout_s=config.health.timeout_s)
        self._sleepers = Sleepers(engines, timeout_s=config.health.timeout_s)
        self._book = HealthBook(engines, accounts, clock, went_down=self._went_down)
        self._tasks = TaskOwner("watch")
        self._watched: dict[str, _Watched] = {}
        self._leaving: set[str] = set()
        self._adding: set[str] = set()
        self._engine_ids: dict[tuple[str, int], _Seen] = {}
        self.fatal: asyncio.Future[KvproxyError] = asyncio.get_running_loop().create_future()
        """Set when the process should end: to a ConfigError or a StartupError."""

    def start(self) -> None:
        """Begin to watch the configured instances, and those that were added before a restart."""
        restored = self._members.restored if self._members is not None else NOTHING
        for spec in self._config.instances:
            self._begin(spec, drained=spec.address in restored.drained)
        for spec, drained in restored.added:
            self._begin(spec, drained=drained, tries=1)  # no flag names it: another model is only refused
        for line in restored.told:
            log.info("%s", line)
        for line in restored.overruled:
            log.warning("%s", line)
        if restored.overruled:
            self._tell_changed()
        self._tasks.create(self._start_up(), name="start-up")
        self._tasks.create(Changes(self._fleet, self._feeds, self._clock).tell(), name="changes")

    def _begin(self, spec: InstanceSpec, *, drained: bool, tries: int = 0) -> None:
        instance = Instance(spec, self._breaker())
        instance.draining = drained
        self._engines.reach(spec)
        self._fleet.add(instance)
        self._watch(instance, tries=tries)

    def _tell_changed(self) -> None:
        if self._members is not None:
            staying = (instance for instance in self._fleet if instance.address not in self._leaving)
            self._members.changed([Present(instance.spec, instance.draining) for instance in staying])

    async def _start_up(self) -> None:
        try:
            await see_start_through(self._fleet, self._config.startup_timeout_s)
        except StartupError as error:
            self._end(error)

    def _end(self, error: KvproxyError) -> None:
        if not self.fatal.done():
            self.fatal.set_result(error)

    def _breaker(self, *, joins: bool = False) -> Breaker:
        return Breaker(slow_start_s=self._config.health.slow_start_s, joins=joins, rng=self._rng)

    async def close(self) -> None:
        """Stop watching and following."""
        await self._tasks.close()
        if self._feeds is not None:
            for watched in self._watched.values():
                await self._feeds.unfollow(watched.instance)

    async def add(self, spec: InstanceSpec) -> Instance:
        """Check and take in an instance. Raises ConflictError, or BadRequestError with the reason."""
        if self._fleet.get(spec.address) is not None:
            raise ConflictError(f"{spec.address} is there already")
        if spec.address in self._adding:  # maybe by the other scheme, and an address is spoken to in one way
            raise ConflictError(f"{spec.address} is being added")
        instance = Instance(spec, self._breaker(joins=True))
        self._engines.reach(spec)
        self._adding.add(spec.address)
        try:
            cards = await self._checker.cards(spec.address, ADD_TIMEOUT_S)
        except LegError as error:
            raise BadRequestError(f"{error}: nothing was added", param="instance") from None
        finally:
            self._adding.discard(spec.address)
        if (wrong := wrong_model(cards, self._config.model)) is not None:
            raise BadRequestError(f"{spec.role} {spec.address} {wrong}: nothing was added", param="instance")
        self._fleet.add(instance)
        self._tell_changed()
        watched = self._watch(
            instance, tries=1
        )  # a start is over: from here on another model is only refused
        await watched.checked.wait()
        return instance

    def drain(self, address: str, *, undo: bool = False) -> Instance:
        """Give an instance no new legs, or give it some again. Raises NotFoundError, ConflictError."""
        instance = self._known(address)
        if undo and address in self._leaving:
            raise ConflictError(f"{address} is being removed; add it again once it is gone")
        if instance.draining is undo:
            instance.draining = not undo
            self._tell_changed()
            log.info("%s %s %s", instance.role, address, "takes legs again" if undo else "is draining")
        return instance

    async def remove(self, address: str, *, force: bool) -> Instance:
        """Let an instance go: no new legs, and what runs there ends first unless `force`. Raises NotFoundError."""
        instance = self._known(address)
        instance.draining = True
        new = address not in self._leaving
        self._leaving.add(address)
        self._tell_changed()
        if force:
            await asyncio.shield(self._tasks.create(self._let_go(instance), name=f"remove {address}"))
        elif new:
            self._tasks.create(self._leave(instance), name=f"remove {address}")
            await asyncio.sleep(0)  # one that is idle is gone at once
            if self._fleet.get(address) is instance:
                log.info(
                    "%s %s takes no new legs and goes when those running have ended", instance.role, address
                )
        return instance

    def _known(self, address: str) -> Instance:
        instance = self._fleet.get(address)
        if instance is None:
            raise NotFoundError(f"{address} is not known")
        return instance

    def leg_failed(self, instance: Instance, error: LegError) -> None:
        """As the director tells: a refused connection is believed at once, anything else is looked into."""
        if isinstance(error, OurTroubleError):
            return
        if instance.status is Status.ASLEEP:
            self._wake(instance.address)
            return
        if not isinstance(error, ConnectFailedError) or isinstance(error, ConnectTimeoutError):
            self._book.broke(instance, error.words)
        elif instance.status is Status.UP:
            self._book.lost(instance, error.words)
        self._wake(instance.address)

    def suspect(self, instance: Instance) -> None:
        """As the director tells: a request waits to hear whether the instance is dead, or it serves something else."""
        self._wake(instance.address)

    def leg_began(self, address: str) -> None:
        """As the director tells: a leg began to stream what was asked for."""
        if (instance := self._fleet.get(address)) is not None:
            self._book.began(instance)

    def leg_served(self, address: str) -> None:
        """As the director tells: a leg was answered with what was asked for."""
        if (instance := self._fleet.get(address)) is not None:
            self._book.served(instance)

    def leg_erred(self, address: str) -> None:
        """As the director tells: the engine answered that it failed."""
        if (instance := self._fleet.get(address)) is not None and instance.status is not Status.ASLEEP:
            self._book.erred(instance)

    def outdone(self, addresses: Collection[str]) -> None:
        """As the director tells: legs failed there, and other instances then served the same request."""
        for address in addresses:
            instance = self._fleet.get(address)
            if instance is None or instance.status is Status.ASLEEP:
                continue
            if self._sleepers.can_sleep(instance):  # falling asleep it drops its legs: that is nobody's fault
                self._tasks.create(self._charge(instance), name=f"charge {address}")
            else:
                self._book.charged(instance)
            self._wake(address)

    async def _charge(self, instance: Instance) -> None:
        if not await self._sleepers.asleep(instance) and self._fleet.get(instance.address) is instance:
            self._book.charged(instance)

    def _wake(self, address: str) -> None:
        if (watched := self._watched.get(address)) is not None:
            watched.wake.set()

    def process_seen(self, instance: Instance, rank: int, engine_id: str) -> None:
        """As the director tells: another identity than last time means another process, with an empty cache."""
        if not instance.sources and len(instance.ranks) == 1:
            return  # it may have ranks we do not know of, each a process of its own
        source = instance.sources.get(rank)
        now = _Seen(engine_id, source.epoch if source is not None else 0)
        before = self._engine_ids.get((instance.address, rank))
        self._engine_ids[instance.address, rank] = now
        if before is None or before.engine_id == engine_id or before.epoch != now.epoch:
            return  # nothing new, or its events told us before
        log.warning("%s rank %d is another process than before", instance.address, rank)
        self._forget(instance.address)
        if self._feeds is not None:
            self._feeds.suspect(instance, rank)

    # -- one instance -------------------------------------------------------------------------------------

    def _watch(self, instance: Instance, *, tries: int = 0) -> _Watched:
        watched = self._watched[instance.address] = _Watched(instance)
        watched.tries = tries
        watched.task = self._tasks.create(self._keep_watching(watched), name=instance.address)
        return watched

    async def _keep_watching(self, watched: _Watched) -> None:
        instance, interval_s = watched.instance, self._config.health.interval_s
        apart_s = min(PROBE_FIRST_S, interval_s)
        while True:
            watched.wake.clear()
            begun_at = self._clock()
            await self._check(watched)
            watched.checked.set()
            if instance.status is Status.REFUSED:
                pause_s = PROBE_MOST_S * self._rng.uniform(1 - JITTER, 1 + JITTER)
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

    async def _check(self, watched: _Watched) -> None:
        instance = watched.instance
        watched.tries += 1
        check = await self._checker.alive(instance.address)
        self._accounts.checked(instance.address, check.finding.value)
        if check.finding is not Finding.ANSWERED:
            self._book.checked(instance, check)
        elif (
            instance.status in {Status.UP, Status.ASLEEP}
            and watched.looked_at is not None
            and self._clock() - watched.looked_at < LOOK_EVERY_S
        ):
            await self._lives(watched)
        else:
            await self._look(watched)

    async def _look(self, watched: _Watched) -> None:
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
        wrong = wrong_model(cards, self._config.model)
        if wrong is None:
            await self._came_up(watched, cards)
            watched.looked_at = self._clock()
            return
        wrong = f"{instance.role} {instance.address} {wrong}"
        if watched.tries == 1:
            self._end(ConfigError(f"{wrong}: start it with --served-model-name, or change --model"))
        elif instance.status is not Status.REFUSED:
            instance.status, instance.why_down = Status.REFUSED, wrong
            log.warning("%s: refused until it does", wrong)

    async def _came_up(self, watched: _Watched, cards: list[ModelCard]) -> None:
        instance = watched.instance
        instance.listed(cards, self._clock())
        instance.unlisted = None
        if self._feeds is not None:
            await self._feeds.follow(instance)
            if instance.status is Status.DOWN:
                for rank in instance.ranks:
                    self._feeds.suspect(instance, rank)
        if instance.status is not Status.UP:  # beside the check: nobody waits for this answer
            self._tasks.create(self._learn_version(instance), name=f"version of {instance.address}")
        await self._lives(watched)

    async def _lives(self, watched: _Watched) -> None:
        """It serves what it should, unless it sleeps."""
        instance = watched.instance
        if was_up := instance.status is Status.UP:
            self._book.answered(instance)  # it may be long in telling whether it sleeps
        if await self._sleepers.asleep(instance):
            self._book.asleep(instance)
            if not watched.lost_its_cache or self._thought_to_have(instance):
                await self._look_at_sleep(watched)
            if (
                watched.answers_nothing
            ):  # again and again: legs that were on their way come after it was found so
                self._engines.give_up(instance.address)
        else:
            watched.lost_its_cache = watched.answers_nothing = False
            if not was_up:
                self._book.answered(instance)

    async def _look_at_sleep(self, watched: _Watched) -> None:
        """If it has lost its cache, that is known from here on; its events will tell of it only when it is awake."""
        instance = watched.instance
        depth = await self._sleepers.depth(instance)
        if depth is None or depth is Depth.LIGHT:
            return
        if not watched.lost_its_cache:
            watched.lost_its_cache = True
            watched.answers_nothing = depth is Depth.DEEP
            self._forget(instance.address)
        for rank in self._thought_to_have(
            instance
        ):  # again and again: a replay tells of what was there before it slept
            if self._feeds is not None:
                self._feeds.rebuild(instance, rank, replay=False)

    def _thought_to_have(self, instance: Instance) -> Collection[int]:
        """The ranks that blocks are known of."""
        return self._feeds.filled(instance) if self._feeds is not None else ()

    async def _learn_version(self, instance: Instance) -> None:
        instance.version = await self._checker.version(instance.address)

    def _went_down(self, instance: Instance) -> None:
        instance.pulled_from.clear()
        instance.fullness.forget()
        instance.denials.forget()
        for rank in instance.ranks:  # whoever comes back is verified anyway
            self._engine_ids.pop((instance.address, rank), None)
        self._forget(instance.address)

    async def _leave(self, instance: Instance) -> None:
        # Neither claims nor holds tell anyone when they end, and this is rare.
        while instance.running_legs() or self._fleet.holds[instance.address]:  # noqa: ASYNC110
            await asyncio.sleep(PROBE_FIRST_S / 5)
        await self._let_go(instance)

    async def _let_go(self, instance: Instance) -> None:
        address = instance.address
        if self._fleet.get(address) is not instance:
            return
        self._fleet.remove(address)
        self._accounts.forget(address)  # from here on nothing is counted for it
        self._leaving.discard(address)
        watched = self._watched.pop(address, None)
        if watched is not None and watched.task is not None:
            watched.task.cancel()
            await asyncio.wait({watched.task})
            watched.checked.set()  # who added it may still wait for a check that will not come
        self._forget(address)
        for rank in instance.ranks:
            self._engine_ids.pop((address, rank), None)
        if self._feeds is not None:
            await self._feeds.unfollow(instance)
            self._feeds.forget(instance)
        self._engines.forget(address)
        self._book.forget(address)
        self._sleepers.forget(address)
        log.info("%s %s was removed", instance.role, address)
