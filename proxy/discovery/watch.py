"""An instance gets legs only after it was seen to serve the right model, and loses them when it cannot be reached.

One task watches each instance: it checks what the engine serves, has its KV events followed, and probes a dead
one until it is back. Checks never count as load.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from proxy.config import Config, InstanceSpec
from proxy.discovery.feeds import EventFeeds
from proxy.errors import (
    BadRequestError,
    ConfigError,
    ConflictError,
    ConnectFailedError,
    KvproxyError,
    LegError,
    NoSocketError,
    NotFoundError,
)
from proxy.instances import Fleet, Instance, Status
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)

CHECK_EVERY_S = 5.0
PROBE_FIRST_S = 0.25
PROBE_MOST_S = 2.0
"""A dead instance is probed after a quarter of a second, then ever later: back within 2 s of being up."""
CHECK_TIMEOUT_S = 5.0
CHECKS_MISSED_MOST = 3
"""A busy engine may be slow to answer a check; only a refused connection is believed at once."""
PROGRESS_EVERY_S = 10.0


class StartupError(KvproxyError):
    """No request could be served within the time for starting up; the process ends with exit code 1."""


class Engines(Protocol):
    """The part of the engine client needed here."""

    async def get_json(self, instance: str, path: str, timeout_s: float) -> Any:
        """Ask an engine about itself; raises LegError."""
        ...

    def give_up(self, instance: str) -> None:
        """Break every leg that waits for an engine."""
        ...


class _Card(msgspec.Struct):
    id: str
    parent: str | None = None


class _Seen(NamedTuple):
    """The engine process a rank's last answer came from."""

    engine_id: str
    retirements: int
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
        self.missed = 0


class FleetWatch:
    """Owns the watching of all instances: those configured, and those added and removed later."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        engines: Engines,
        feeds: EventFeeds | None,
        *,
        forget: Callable[[str], None] = lambda _address: None,
    ) -> None:
        """`feeds` is None if KV events are off; `forget` is told of instances that lost their cache."""
        self._config = config
        self._fleet = fleet
        self._engines = engines
        self._feeds = feeds
        self._forget = forget
        self._tasks = TaskOwner("watch")
        self._watched: dict[str, _Watched] = {}
        self._leaving: set[str] = set()
        self._engine_ids: dict[tuple[str, int], _Seen] = {}
        self.fatal: asyncio.Future[KvproxyError] = asyncio.get_running_loop().create_future()
        """Set when the process should end: to a ConfigError or a StartupError."""

    def start(self) -> None:
        """Begin to watch the configured instances."""
        for spec in self._config.instances:
            instance = Instance(spec)
            self._fleet.add(instance)
            self._watch(instance)
        self._tasks.create(self._see_start_through(), name="start-up")

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
        instance = Instance(spec)
        try:
            cards = await self._served(instance)
        except LegError as error:
            raise BadRequestError(f"{error}: nothing was added", param="instance") from None
        if (wrong := self._wrong_model(instance, cards)) is not None:
            raise BadRequestError(f"{wrong}: nothing was added", param="instance")
        if self._fleet.get(spec.address) is not None:  # another add was faster
            raise ConflictError(f"{spec.address} is there already")
        self._fleet.add(instance)
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
            log.info("%s %s %s", instance.role, address, "takes legs again" if undo else "is draining")
        return instance

    async def remove(self, address: str, *, force: bool) -> Instance:
        """Let an instance go: no new legs, and what runs there ends first unless `force`. Raises NotFoundError."""
        instance = self._known(address)
        instance.draining = True
        if force:
            await asyncio.shield(self._tasks.create(self._let_go(instance), name=f"remove {address}"))
        elif address not in self._leaving:
            self._leaving.add(address)
            self._tasks.create(self._leave(instance), name=f"remove {address}")
            await asyncio.sleep(0)  # one that is idle is gone at once
        return instance

    def _known(self, address: str) -> Instance:
        instance = self._fleet.get(address)
        if instance is None:
            raise NotFoundError(f"{address} is not known")
        return instance

    def leg_failed(self, instance: Instance, error: LegError) -> None:
        """As the director tells: a refused connection is believed at once, anything else is looked into."""
        if isinstance(error, NoSocketError):
            return
        if isinstance(error, ConnectFailedError) and instance.status is Status.UP:
            self._went_down(instance, error)
        if (watched := self._watched.get(instance.address)) is not None:
            watched.wake.set()

    def process_seen(self, instance: Instance, rank: int, engine_id: str) -> None:
        """As the director tells: another identity than last time means another process, with an empty cache."""
        if not instance.sources and len(instance.ranks) == 1:
            return  # it may have ranks we do not know of, each a process of its own
        source = instance.sources.get(rank)
        now = _Seen(engine_id, source.retirements if source is not None else 0)
        before = self._engine_ids.get((instance.address, rank))
        self._engine_ids[instance.address, rank] = now
        if before is None or before.engine_id == engine_id or before.retirements != now.retirements:
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
        instance = watched.instance
        while True:
            watched.wake.clear()
            await self._check(watched)
            watched.checked.set()
            if instance.status is Status.UP:
                pause_s = CHECK_EVERY_S
            else:
                pause_s = min(PROBE_MOST_S, PROBE_FIRST_S * 2 ** min(watched.missed, 4))
            pause_s *= random.uniform(0.8, 1.2)  # noqa: S311  # spreads the checks of many routers
            try:
                async with asyncio.timeout(pause_s):
                    await watched.wake.wait()
                await asyncio.sleep(PROBE_FIRST_S / 5)  # many legs fail at once: one check for all
            except TimeoutError:
                pass

    async def _check(self, watched: _Watched) -> None:
        instance = watched.instance
        watched.tries += 1
        try:
            cards = await self._served(instance)
        except NoSocketError as error:
            log.warning("%s cannot be checked: %s", instance.address, error.words)
            return
        except LegError as error:
            watched.missed += 1
            if (
                instance.status is not Status.UP
                or isinstance(error, ConnectFailedError)
                or watched.missed >= CHECKS_MISSED_MOST
            ):
                self._went_down(instance, error)
            if watched.missed == CHECKS_MISSED_MOST:
                self._engines.give_up(instance.address)  # its connections may stand, but nobody is there
            return
        watched.missed = 0
        wrong = self._wrong_model(instance, cards)
        if wrong is None:
            await self._came_up(instance, cards)
        elif watched.tries == 1 and not self.fatal.done():
            self.fatal.set_result(
                ConfigError(f"{wrong}: start it with --served-model-name, or change --model")
            )
        elif instance.status is not Status.REFUSED:
            instance.status, instance.why_down = Status.REFUSED, wrong
            log.warning("%s: refused until it does", wrong)

    async def _served(self, instance: Instance) -> list[dict[str, Any]]:
        answer = await self._engines.get_json(instance.address, "/v1/models", CHECK_TIMEOUT_S)
        cards = answer.get("data") if isinstance(answer, dict) else None
        try:
            msgspec.convert(cards, list[_Card])
        except msgspec.ValidationError:
            raise LegError(instance.address, "its /v1/models is not a list of models") from None
        return list(cards or [])

    def _wrong_model(self, instance: Instance, cards: list[dict[str, Any]]) -> str | None:
        served = [str(card["id"]) for card in cards if not card.get("parent")]
        if self._config.model in served:
            return None
        names = ", ".join(repr(name) for name in served) or "no model"
        return f"{instance.role} {instance.address} serves {names}, not {self._config.model!r} (--model)"

    async def _came_up(self, instance: Instance, cards: list[dict[str, Any]]) -> None:
        instance.model_cards = cards
        if self._feeds is not None:
            await self._feeds.follow(instance)
        if instance.status is not Status.UP:
            if self._feeds is not None and instance.status is Status.DOWN:
                for rank in instance.ranks:
                    self._feeds.suspect(instance, rank)
            instance.status, instance.why_down = Status.UP, None
            log.info("%s %s is up, serving %s", instance.role, instance.address, self._config.model)

    def _went_down(self, instance: Instance, error: LegError) -> None:
        if instance.status is not Status.DOWN:
            starting = instance.status is Status.STARTING
            log.log(
                logging.INFO if starting else logging.WARNING,
                "%s %s is down: %s%s",
                instance.role,
                instance.address,
                error.words,
                "; trying on" if starting else "",
            )
        instance.status, instance.why_down = Status.DOWN, error.words
        instance.pulled_from.clear()
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
        log.info("%s %s was removed", instance.role, address)

    # -- the start ----------------------------------------------------------------------------------------

    async def _see_start_through(self) -> None:
        """Report progress until the first request could be served, or time is up."""
        limit_s = self._config.startup_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                said_at = asyncio.get_running_loop().time()
                while not self._fleet.ready:
                    await asyncio.sleep(PROBE_FIRST_S / 5)
                    now = asyncio.get_running_loop().time()
                    if now - said_at > PROGRESS_EVERY_S:
                        said_at = now
                        log.info("still waiting for %s", self._missing())
        except TimeoutError:
            if not self.fatal.done():
                self.fatal.set_result(
                    StartupError(
                        f"not ready after {limit_s:g} s (--startup-timeout): {self._missing()}."
                        " Check that each address is where its vLLM listens"
                    )
                )
            return
        up = sum(1 for instance in self._fleet if instance.status is Status.UP)
        log.info("ready: %d of %d instances are up", up, len(self._fleet))

    def _missing(self) -> str:
        missing = [
            f"{i.role} {i.address} ({i.why_down or i.status})"
            for i in self._fleet
            if i.status is not Status.UP
        ]
        if missing:
            return ", ".join(missing)
        return "a prefill and a decode instance (or one that does both)"
