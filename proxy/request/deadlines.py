"""Every wait has an end: a phase that takes too long fails its leg, a request that takes too long fails with
504.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import NamedTuple, Self

from proxy.errors import BadRequestError, DeadlineError, GatewayTimeoutError
from proxy.headers import REQUEST_TIMEOUT_MS, TTFT_MS

MAX_DIGITS = 12
"""The most digits of a client's time limit: they make thirty years in milliseconds, and more are a
mistake."""


MIN_PAUSE_S = 0.005
"""How long an alarm pauses after it rang: so much later a deadline may be seen that is close behind another.
Each time it looks at all that is under way."""


class Alarm:
    """Ends what is late, by one timer of its loop for all deadlines: hardly any is ever reached."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._awaited: dict[Scope, float] = {}
        """When each ends, on the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def set(self, scope: "Scope", ends_at: float) -> None:
        """End it then."""
        self._awaited[scope] = ends_at
        if ends_at < self._rings_at:
            self._wind(ends_at)

    def unset(self, scope: "Scope") -> None:
        """It is over. The timer may ring for it in vain: it is set again only then."""
        self._awaited.pop(scope, None)

    def _wind(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = at
        self._timer = self.loop.call_at(at, self._ring)

    def _ring(self) -> None:
        now = self.loop.time()
        self._timer, self._rings_at = None, math.inf
        try:
            for scope in [scope for scope, ends_at in self._awaited.items() if ends_at <= now]:
                if self._awaited.pop(scope, None) is not None:  # the end of another may have ended it
                    scope.end()
        finally:  # whatever one of them does, the others are not forgotten
            if self._awaited:
                self._wind(max(min(self._awaited.values()), now + MIN_PAUSE_S))


_alarm: Alarm | None = None


def alarm() -> Alarm:
    """That of the running loop: the same one for as long as no other loop asks."""
    global _alarm  # noqa: PLW0603  # a process has one loop, and looking it up otherwise costs more than a timer
    loop = asyncio.get_running_loop()
    found = _alarm
    if found is None or found.loop is not loop:
        found = _alarm = Alarm(loop)
    return found


class Scope(ABC):
    """Ends what is awaited in its `with` block when time is up, or when `end` is called; then `late` is
    raised.

    It does what `asyncio.timeout` does, without coroutines and timers of its own.
    """

    __slots__ = ("_alarm", "_cancelling", "_ended", "_ends_at", "_seconds", "_task")

    def __init__(self, ends_at: float | None = None, *, seconds: float | None = None) -> None:
        """`ends_at`: by the event loop's clock; `seconds`: so long after the block was entered. If neither is
        given, only `end` ends it.
        """
        self._ends_at = ends_at
        self._seconds = seconds
        self._ended = False
        self._alarm: Alarm | None = None

    @abstractmethod
    def late(self) -> Exception:
        """The error that is raised in place of the cancellation."""

    def end(self) -> None:
        """End the block now. A second call does nothing."""
        if not self._ended:
            self._ended = True
            self._task.cancel()

    def __enter__(self) -> Self:
        clock = alarm()
        task = asyncio.current_task(clock.loop)
        if task is None:
            raise RuntimeError("a scope is entered outside of a task")
        self._task = task
        self._cancelling = task.cancelling()
        if self._seconds is not None:
            self._ends_at = clock.loop.time() + self._seconds
        if self._ends_at is not None:
            self._alarm = clock
            clock.set(self, self._ends_at)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alarm is not None:
            self._alarm.unset(self)
        # If the task was cancelled by someone else as well, that cancellation goes on.
        if self._ended and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self.late() from None


class _Phase(Scope):
    __slots__ = ("_instance", "_what")

    def __init__(self, seconds: float, instance: str, what: str) -> None:
        super().__init__(seconds=seconds)
        self._instance = instance
        self._what = what

    def late(self) -> DeadlineError:
        return DeadlineError(self._instance, f"{self._what} took longer than {self._seconds:g} s")


def within(seconds: float, instance: str, what: str) -> Scope:
    """The block has to be done within `seconds`, or DeadlineError is raised for the instance; `what` names
    the phase.
    """
    return _Phase(seconds, instance, what)


class _Whole(Scope):
    __slots__ = ("_limit",)

    def __init__(self, limit: "TimeLimit") -> None:
        super().__init__(limit.ends_at)
        self._limit = limit

    def late(self) -> GatewayTimeoutError:
        return GatewayTimeoutError(
            f"the request took longer than its limit of {self._limit.seconds or 0.0:g} s"
        )


class TimeLimit(NamedTuple):
    """How long one request may take in all."""

    seconds: float | None
    """None: no limit."""
    ends_at: float | None
    """By the event loop's clock, which is the monotonic one."""

    def enforced(self) -> Scope | nullcontext[None]:
        """The block is cancelled when time is up, and GatewayTimeoutError raised."""
        return _UNLIMITED if self.ends_at is None else _Whole(self)


NO_LIMIT = TimeLimit(None, None)

_UNLIMITED = nullcontext()


def time_limit(given: Sequence[str], configured_s: float, arrived_at: float) -> TimeLimit:
    """The limit of a request that arrived at `arrived_at` (monotonic seconds).

    `given` are the values of the client's X-Request-Timeout-Ms, `configured_s` is --request-timeout (0:
    none); the shorter limit counts. Raises BadRequestError.
    """
    limits = [configured_s] if configured_s else []
    if given:
        limits.append(_whole_ms(REQUEST_TIMEOUT_MS, given) / 1000)
    if not limits:
        return NO_LIMIT
    return TimeLimit(min(limits), arrived_at + min(limits))


class Goal(NamedTuple):
    """When a client wants the first token of its answer. Nothing is cut that comes later."""

    ms: int
    """From the request's arrival."""
    by: float
    """In seconds of the monotonic clock."""


def goal_of(given: Sequence[str], arrived_at: float) -> Goal | None:
    """The goal of a request that arrived at `arrived_at` (monotonic seconds).

    `given` are the values of the client's X-Kvproxy-TTFT-Ms; without one there is no goal. Raises
    BadRequestError.
    """
    if not given:
        return None
    ms = _whole_ms(TTFT_MS, given)
    return Goal(ms, arrived_at + ms / 1000)


def _whole_ms(header: str, given: Sequence[str]) -> int:
    """The milliseconds that a header says. Raises BadRequestError unless it has one number above 0."""
    value = given[0].strip()
    if len(given) > 1 or not (value.isascii() and value.isdecimal() and len(value) <= MAX_DIGITS):
        raise _bad(header, ", ".join(given))
    if not int(value):
        raise _bad(header, value)
    return int(value)


def _bad(header: str, given: str) -> BadRequestError:
    return BadRequestError(
        f"{header} must be a whole number of milliseconds above 0, not {given[:40]!r}", param=header
    )
