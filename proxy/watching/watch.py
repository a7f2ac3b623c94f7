"""Each instance that a membership source wants is in the fleet and watched, from when it is wanted until it
is gone.

`membership` says which instances are wanted, `rounds` checks them, `leg_reports` gets what legs show; both of
these write into the book of `health`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from proxy.caches.feeds import EventFeeds
from proxy.config import InstanceSpec, Rules
from proxy.errors import ConflictError, KvproxyError, NotFoundError
from proxy.fleet import Fleet, Instance
from proxy.fleet.circuit import PROBE_FIRST_S, Breaker
from proxy.happenings import InstanceRemoved, Tell
from proxy.tasks import TaskOwner
from proxy.watching.changes import SILENT_S, Changes
from proxy.watching.health import GONE_S, HealthBook
from proxy.watching.leg_reports import LegReports
from proxy.watching.membership.base import MembershipSource
from proxy.watching.membership.roster import Roster, Wish
from proxy.watching.ports import WatchClient
from proxy.watching.processes import Processes
from proxy.watching.rounds import LOOK_EVERY_S, Rounds
from proxy.watching.sleeping import Sleepers
from proxy.watching.startup import StartupError, see_start_through

log = logging.getLogger(__name__)


class _Leaving(NamedTuple):
    """An instance that gets no new legs and is removed once its legs have ended."""

    task: "asyncio.Task[None]"
    drained: bool
    """Whether the instance is still drained if it stays after all."""


class FleetWatch:
    """Owns the watching of all instances."""

    def __init__(
        self,
        rules: Rules,
        fleet: Fleet,
        engines: WatchClient,
        feeds: EventFeeds | None,
        tell: Tell,
        *,
        forget: Callable[[str], None] = lambda _address: None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        gone_s: float = GONE_S,
        look_every_s: float = LOOK_EVERY_S,
        silent_s: float = SILENT_S,
    ) -> None:
        """`feeds`: None if KV events are off. `forget`: called with instances that lost their cache.

        `clock` MUST be that of `engines.heard_at` and of the placement. `gone_s`, `look_every_s`, `silent_s`:
        as of `HealthBook`, `Rounds` and `Changes`.
        """
        self._config = config = rules.now
        self._fleet = fleet
        self._engines = engines
        self._feeds = feeds
        self._tell = tell
        self._forget = forget
        self._clock = clock
        self._silent_s = silent_s
        self._rng = rng or random.Random()  # noqa: S311  # spreads the checks of many routers
        self._tasks = TaskOwner("watch")
        self._processes = Processes()
        self._book = HealthBook(engines, tell, clock, went_down=self._went_down, gone_s=gone_s)
        self._sleepers = Sleepers(engines, timeout_s=config.health.timeout_s)
        self._rounds = Rounds(
            rules,
            engines,
            feeds,
            tell,
            self._book,
            self._sleepers,
            self._tasks,
            forget=forget,
            end=self._end,
            clock=clock,
            rng=self._rng,
            look_every_s=look_every_s,
        )
        self.legs = LegReports(
            fleet,
            self._book,
            self._sleepers,
            self._processes,
            feeds,
            self._tasks,
            wake=self._rounds.wake,
            forget=forget,
        )
        """Takes what the director reports of legs."""
        self._sources: list[MembershipSource] = []
        self._roster = Roster()
        self._starting = True
        self._leaving: dict[str, _Leaving] = {}
        """The instances that are removed once their legs have ended."""
        self._going: dict[str, asyncio.Task[None]] = {}
        """Addresses whose instance is out of the fleet while what is known of it is still being forgotten."""
        self.fatal: asyncio.Future[KvproxyError]
        """Made by `start`; set to a ConfigError or StartupError when the process must end."""

    def start(self, sources: Sequence[MembershipSource]) -> None:
        """Begin to watch the instances that these sources want, now and later."""
        self.fatal = asyncio.get_running_loop().create_future()
        for source in sources:
            self._sources.append(source)
            source.start(_Heard(self, source.name))
        self._starting = False
        self._tasks.create(self._start_up(), name="start-up")
        changes = Changes(self._fleet, self._feeds, self._clock, silent_s=self._silent_s)
        self._tasks.create(changes.tell(), name="changes")

    async def _start_up(self) -> None:
        try:
            await see_start_through(self._fleet, self._config.startup_timeout_s)
        except StartupError as error:
            self._end(error)

    def _end(self, error: KvproxyError) -> None:
        if not self.fatal.done():
            self.fatal.set_result(error)

    async def close(self) -> None:
        """Close the sources; stop watching and following."""
        for source in self._sources:
            await source.close()
        await self._tasks.close()
        if self._feeds is not None:
            for instance in self._fleet:
                await self._feeds.unfollow(instance)

    # -- what sources want --------------------------------------------------------------------------------

    def want(self, source: str, wish: Wish) -> None:
        """As `membership.base.Wants` has it."""
        if not self._roster.want(source, wish):
            return
        address = wish.spec.address
        there = self._fleet.get(address)
        if there is None and address not in self._going:
            self._begin(wish)
        elif there is None:
            return  # it begins once the old one is forgotten
        elif there.spec == wish.spec:
            self._stay(there)
        elif address not in self._leaving:
            log.warning(
                "%s %s stays as it is: %s want it as %s, in another way",
                there.role,
                address,
                source,
                wish.spec.role,
            )

    def drop(self, source: str, address: str) -> None:
        """As `membership.base.Wants` has it."""
        if not self._roster.drop(source, address) or (there := self._fleet.get(address)) is None:
            return
        wish = self._roster.wish(address)
        if (
            wish is None or wish.spec != there.spec
        ):  # a source that wants it in another way gets it once this one is gone
            log.info("%s %s is not wanted any more by %s", there.role, address, source)
            self._leave(there)

    def _begin(self, wish: Wish) -> None:
        breaker = Breaker(
            slow_start_s=self._config.health.slow_start_s, joins=not self._starting, rng=self._rng
        )
        instance = Instance(wish.spec, breaker, draining=wish.drained)
        self._engines.reach(wish.spec)
        self._fleet.add(instance)
        self._rounds.begin(instance, vital=wish.vital)

    def _stay(self, instance: Instance) -> None:
        """An instance is wanted again, and may be about to leave: it stays."""
        if (leaving := self._leaving.pop(instance.address, None)) is not None:
            leaving.task.cancel()
            if not leaving.drained:
                instance.undrain()
            log.info("%s %s stays: it is wanted again", instance.role, instance.address)

    # -- what an operator says ----------------------------------------------------------------------------

    def drain(self, address: str, *, undo: bool = False) -> bool:
        """Give an instance no new legs, or (`undo`) give it some again. Returns whether that changes
        anything.

        Raises NotFoundError, ConflictError.
        """
        instance = self._known(address)
        if undo and address in self._leaving:
            raise ConflictError(f"{address} is being removed; add it again once it is gone")
        if instance.draining is not undo:
            if address in self._leaving:  # it stays drained if it is wanted again meanwhile
                self._leaving[address] = self._leaving[address]._replace(drained=True)
            return False
        (instance.undrain if undo else instance.drain)()
        log.info("%s %s %s", instance.role, address, "takes legs again" if undo else "is draining")
        return True

    async def remove(self, address: str, *, force: bool, by: str) -> None:
        """Remove an instance, whoever wants it: no new legs, and unless `force` its running legs end first.

        `by`: the source that speaks for operators. Raises NotFoundError.
        """
        instance = self._known(address)
        self._roster.strike(address, by)
        if force:
            self._take_out(instance)
            await asyncio.wait({self._going[address]})
        elif address not in self._leaving:
            self._leave(instance)
            await asyncio.sleep(0)  # an idle instance is gone after this turn of the loop
            if self._fleet.get(address) is instance:
                log.info(
                    "%s %s takes no new legs and goes when those running have ended", instance.role, address
                )

    async def first_check(self, address: str) -> None:
        """Wait until an instance was checked once, or was removed."""
        await self._rounds.first_check(address)

    async def gone(self, address: str) -> None:
        """Wait until an instance that is out of the fleet is forgotten."""
        if (going := self._going.get(address)) is not None:
            await asyncio.wait({going})

    def _known(self, address: str) -> Instance:
        instance = self._fleet.get(address)
        if instance is None:
            raise NotFoundError(f"{address} is not known")
        return instance

    # -- leaving ------------------------------------------------------------------------------------------

    def _leave(self, instance: Instance) -> None:
        address = instance.address
        if address not in self._leaving:
            task = self._tasks.create(self._go(instance), name=f"remove {address}")
            self._leaving[address] = _Leaving(task, drained=instance.draining)
            instance.drain()

    async def _go(self, instance: Instance) -> None:
        # There is no signal when claims and holds end, and this is rare.
        while instance.running_legs() or self._fleet.holds[instance.address]:  # noqa: ASYNC110
            await asyncio.sleep(PROBE_FIRST_S / 5)
        if self._fleet.get(instance.address) is instance:
            self._take_out(instance)

    def _take_out(self, instance: Instance) -> None:
        """Send nothing there any more, and have a task forget what is known of the instance."""
        address = instance.address
        instance.drain()
        self._fleet.remove(address)
        self._tell(InstanceRemoved(address))  # no series counts anything for it from now on
        self._leaving.pop(address, None)
        self._going[address] = self._tasks.create(self._forget_all(instance), name=f"forget {address}")

    async def _forget_all(self, instance: Instance) -> None:
        address = instance.address
        await self._rounds.end(address)
        self._forget(address)
        self._processes.forget(instance)
        if self._feeds is not None:
            await self._feeds.unfollow(instance)
            self._feeds.forget(instance)
        self._engines.forget(address)
        self._book.forget(address)
        self._sleepers.forget(address)
        log.info("%s %s was removed", instance.role, address)
        del self._going[address]
        if (wish := self._roster.wish(address)) is not None:  # it was wanted again after it began to leave
            self._begin(wish)

    def _went_down(self, instance: Instance) -> None:
        self._processes.forget(instance)
        self._forget(instance.address)


class _Heard:
    """Takes what one source wants; implements `membership.base.Wants`."""

    def __init__(self, watch: FleetWatch, source: str) -> None:
        self._watch = watch
        self._source = source

    def want(self, spec: InstanceSpec, *, drained: bool = False, vital: bool = False) -> None:
        """As `membership.base.Wants` has it."""
        self._watch.want(self._source, Wish(spec, drained, vital))

    def drop(self, address: str) -> None:
        """As `membership.base.Wants` has it."""
        self._watch.drop(self._source, address)
