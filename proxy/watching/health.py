"""What checks and legs show of an instance changes its circuit; each change is logged and counted once.

Synchronous, so the next decision sees all of it. Giving an instance up comes last, so that the legs that
break then find it down already.
"""

import logging
import math
from collections.abc import Callable
from typing import Protocol

from proxy.fleet import Instance, Status
from proxy.fleet.circuit import MAX_MISSED, Circuit
from proxy.happenings import CircuitChanged, Tell
from proxy.watching.checks import Check, Finding

log = logging.getLogger(__name__)

GONE_S = 10.0
"""Seconds after which an engine that is down and silent is gone, even if connections to it seem to stand.

It is down if its port is closed or it calls itself dead. Whoever closed its connections may have been cut off
before the other end could learn of it."""


class HealthClient(Protocol):
    """The part of the engine client that the health book needs."""

    def give_up(self, instance: str) -> None:
        """Break every leg that waits for the engine."""
        ...

    def heard_at(self, instance: str) -> float | None:
        """When an engine last sent something; None if never."""
        ...


class HealthBook:
    """Keeps the health of all instances up to date."""

    def __init__(
        self,
        engines: HealthClient,
        tell: Tell,
        clock: Callable[[], float],
        *,
        went_down: Callable[[Instance], None],
        gone_s: float = GONE_S,
    ) -> None:
        """`went_down`: called with an instance that is gone. `gone_s`: as the constant of this name."""
        self._engines = engines
        self._tell = tell
        self._clock = clock
        self._went_down = went_down
        self._gone_s = gone_s
        self._down_at: dict[str, float] = {}
        self._unchecked: dict[str, str] = {}
        """The instances that could not be checked last time, each with the reason."""

    # -- what checks find ---------------------------------------------------------------------------------

    def checked(self, instance: Instance, check: Check) -> None:
        """A check of an instance was not answered as it should be."""
        log.debug("%s: a check found it %s: %s", instance.address, check.finding, check.words)
        before = instance.breaker.standing
        if check.finding is not Finding.NOTHING:
            self._unchecked.pop(instance.address, None)
        match check.finding:
            case Finding.NOTHING:
                if self._unchecked.get(instance.address) != check.words:
                    self._unchecked[instance.address] = check.words
                    log.warning("%s could not be checked: %s", instance.address, check.words)
                instance.could_not_be_asked(check.words)
                return
            case Finding.BUSY:
                instance.breaker.busy()
            case Finding.MISSED:
                instance.breaker.missed()
            case Finding.UNREACHABLE | Finding.UNHEALTHY:
                instance.breaker.lost()
        self._changed(instance, before)
        silent = instance.breaker.silent
        if instance.breaker.dead:
            self._down(instance, check.words + (f", {MAX_MISSED} times in a row" if silent else ""))
        if silent or self._gone(instance.address):
            self._engines.give_up(instance.address)  # its connections may stand although no engine is there

    def answered(self, instance: Instance) -> None:
        """A check was answered, and the engine serves what it should."""
        self._unchecked.pop(instance.address, None)
        before = instance.breaker.standing
        instance.breaker.answered(self._clock())
        if instance.status is not Status.UP:
            how = "awake" if instance.status is Status.ASLEEP else "up"
            instance.came_up()
            self._down_at.pop(instance.address, None)
            log.info("%s %s is %s", instance.role, instance.address, how)
        self._changed(instance, before)
        if instance.breaker.grown(self._clock()):
            instance.announce()

    def unlisted(self, instance: Instance, words: str) -> None:
        """The engine lives, but its models could not be read: those that it listed before count."""
        if instance.unlisted is None:
            log.warning("%s %s does not tell what it serves: %s", instance.role, instance.address, words)
        instance.lists_nothing_new(words)

    def asleep(self, instance: Instance) -> None:
        """A check was answered, and the engine says that it sleeps."""
        self._unchecked.pop(instance.address, None)
        before = instance.breaker.standing
        instance.breaker.answered(self._clock())
        if instance.status is not Status.ASLEEP:
            instance.fell_asleep()
            self._down_at.pop(instance.address, None)
            log.info("%s %s is asleep: it gets no legs until it is awake", instance.role, instance.address)
        self._changed(instance, before)

    # -- what legs show -----------------------------------------------------------------------------------

    def lost(self, instance: Instance, words: str) -> None:
        """A leg could not connect to the instance."""
        before = instance.breaker.standing
        instance.breaker.lost()
        self._changed(instance, before)
        self._down(instance, words)

    def leg_cut(self, instance: Instance, words: str) -> None:
        """A leg ended without a complete answer."""
        before = instance.breaker.standing
        instance.breaker.leg_cut(self._clock())
        self._changed(instance, before, f"its trial leg failed: {words}")

    def began(self, instance: Instance) -> None:
        """A leg began to stream what was asked for."""
        if instance.breaker.is_settled:
            return
        before = instance.breaker.standing
        instance.breaker.began(self._clock())
        self._changed(instance, before)

    def served(self, instance: Instance) -> None:
        """A leg was answered with what was asked for."""
        if instance.breaker.is_settled:
            return
        before = instance.breaker.standing
        instance.breaker.served(self._clock())
        self._changed(instance, before)

    def engine_failed(self, instance: Instance) -> None:
        """The engine answered that it failed; the fault may be the request's."""
        before = instance.breaker.standing
        instance.breaker.engine_failed(self._clock())
        last = f": {instance.last_failure}" if instance.last_failure else ""
        self._changed(instance, before, f"its trial leg failed{last}")

    def others_served(self, instance: Instance) -> None:
        """A leg failed, and another instance then served the same request."""
        before = instance.breaker.standing
        instance.breaker.others_served(self._clock())
        why = "its legs failed where another instance served the same requests"
        last = f" (last: {instance.last_failure})" if instance.last_failure else ""
        self._changed(instance, before, why + last)

    def forget(self, address: str) -> None:
        """The instance at an address was removed."""
        self._down_at.pop(address, None)
        self._unchecked.pop(address, None)

    # -- inside -------------------------------------------------------------------------------------------

    def _changed(self, instance: Instance, standing: tuple[Circuit, bool, bool], why: str = "") -> None:
        if instance.breaker.standing == standing:
            return
        instance.announce()
        before, state = standing[0], instance.breaker.state
        if state is before:
            return
        self._tell(CircuitChanged(instance.address, state))
        if state is Circuit.OPEN and not instance.breaker.dead:
            instance.circuit_opened(why)
            log.warning("%s %s: circuit open: %s", instance.role, instance.address, why)
        elif state is Circuit.HALF_OPEN:
            log.info("%s %s: circuit half-open: one leg at a time tries it", instance.role, instance.address)
        elif state is Circuit.CLOSED:
            instance.circuit_closed()
            if before is Circuit.HALF_OPEN:
                log.info("%s %s: circuit closed: it serves", instance.role, instance.address)

    def _gone(self, address: str) -> bool:
        latest = max(self._down_at.get(address, math.inf), self._engines.heard_at(address) or 0.0)
        return self._clock() - latest >= self._gone_s

    def _down(self, instance: Instance, words: str) -> None:
        if instance.status is not Status.DOWN:
            starting = instance.status is Status.STARTING
            log.log(
                logging.INFO if starting else logging.WARNING,
                "%s %s is down: %s%s",
                instance.role,
                instance.address,
                words,
                "; trying on" if starting else "",
            )
            self._down_at[instance.address] = self._clock()
        instance.went_down(words)
        self._went_down(instance)
