"""What operators add, drain and remove over /instances/* is in force at once, and after a restart.

An operator waits for the answer, so this source, as the only one, asks an engine first: if it is not up, or
serves another model, it is not added.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from proxy.config import Config, InstanceSpec
from proxy.errors import BadRequestError, ConflictError, LegError, NotFoundError
from proxy.fleet import Fleet, Instance
from proxy.watching.checks import Checker, wrong_model
from proxy.watching.membership.base import Wants
from proxy.watching.membership.kept import Kept
from proxy.watching.membership.members import NOTHING, Present
from proxy.watching.ports import WatchClient

log = logging.getLogger(__name__)

ADD_TIMEOUT_S = 5.0
"""Seconds that an engine may take for its first answer when it is added; a busy one may take longer than a
check."""


class OperatorsWatch(Protocol):
    """What the operators' source may ask of the watch, beside what every source may."""

    def drain(self, address: str, *, undo: bool = False) -> bool:
        """Give an instance no new legs, or (`undo`) some again. Returns whether that changes anything. Raises
        NotFoundError, ConflictError.
        """
        ...

    async def remove(self, address: str, *, force: bool, by: str) -> None:
        """Remove an instance, whoever wants it. Raises NotFoundError."""
        ...

    async def first_check(self, address: str) -> None:
        """Wait until an instance was checked once, or was removed."""
        ...

    async def gone(self, address: str) -> None:
        """Wait until an instance that is out of the fleet is forgotten."""
        ...


class AdminMembership:
    """The instances that operators add; implements MembershipSource."""

    name = "operators"

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        watch: OperatorsWatch,
        engines: WatchClient,
        kept: Kept | None,
        clock: Callable[[], float],
    ) -> None:
        """`kept`: stores for the next process which instances were added, drained and removed; None: nothing
        is stored.
        """
        self._model = config.model
        self._fleet = fleet
        self._watch = watch
        self._engines = engines
        self._kept = kept
        self._checker = Checker(engines, clock, timeout_s=ADD_TIMEOUT_S)
        self._wants: Wants | None = None
        self._present = {spec.address: spec for spec in config.instances}
        """The instances that flags or operators name, by address."""
        self._adding: set[str] = set()

    def start(self, wants: Wants) -> None:
        """Want what was added before a restart."""
        self._wants = wants
        restored = self._kept.restored if self._kept is not None else NOTHING
        for spec, drained in restored.added:
            self._present[spec.address] = spec
            wants.want(spec, drained=drained)
        for line in restored.unchanged:
            log.info("%s", line)
        for line in restored.overruled:
            log.warning("%s", line)
        if restored.overruled:
            self._keep()

    async def close(self) -> None:
        """There is nothing to close."""

    async def add(self, spec: InstanceSpec) -> Instance:
        """Check an instance and add it. Raises ConflictError, or BadRequestError with the reason."""
        there = ConflictError(f"{spec.address} is there already")
        if self._wants is None or self._fleet.get(spec.address) is not None:
            raise there
        if spec.address in self._adding:  # perhaps with another scheme; an address has one
            raise ConflictError(f"{spec.address} is being added")
        self._engines.reach(spec)
        self._adding.add(spec.address)
        try:
            cards = await self._checker.cards(spec.address, ADD_TIMEOUT_S)
            await self._watch.gone(spec.address)
        except LegError as error:
            raise BadRequestError(f"{error}: nothing was added", param="instance") from None
        finally:
            self._adding.discard(spec.address)
        if (wrong := wrong_model(cards, self._model)) is not None:
            raise BadRequestError(f"{spec.role} {spec.address} {wrong}: nothing was added", param="instance")
        self._wants.want(spec)
        instance = self._fleet.get(spec.address)
        if instance is None or instance.spec != spec:
            raise there  # another source named it meanwhile
        self._present[spec.address] = spec
        self._keep()
        await self._watch.first_check(spec.address)
        return instance

    def drain(self, address: str, *, undo: bool = False) -> None:
        """Give an instance no new legs, or (`undo`) give it some again. Raises NotFoundError,
        ConflictError.
        """
        if self._watch.drain(address, undo=undo):
            self._keep()

    async def remove(self, address: str, *, force: bool) -> None:
        """Remove an instance: no new legs, and unless `force` its running legs end first. Raises
        NotFoundError.
        """
        if self._fleet.get(address) is None:
            raise NotFoundError(f"{address} is not known")
        if self._present.pop(address, None) is not None:
            self._keep()
        await self._watch.remove(address, force=force, by=self.name)

    async def written(self) -> None:
        """Wait until the last change is on disk, if changes are stored. Raises nothing."""
        if self._kept is not None:
            await self._kept.written()

    def _keep(self) -> None:
        if self._kept is not None:
            instances = ((spec, self._fleet.get(address)) for address, spec in self._present.items())
            self._kept.changed(
                [Present(spec, instance is not None and instance.draining) for spec, instance in instances]
            )
