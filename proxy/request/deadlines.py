"""Every wait has an end: a phase that takes too long fails its leg, a request that takes too long fails with
504.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import NamedTuple, Self

from proxy.errors import BadRequestError, DeadlineError, GatewayTimeoutError
from proxy.headers import REQUEST_TIMEOUT_MS

MAX_DIGITS = 12
"""The most digits of a client's time limit: they make thirty years in milliseconds, and more are a
mistake."""


class Scope(ABC):
    """Ends what is awaited in its `with` block when time is up, or when `end` is called; then `late` is
    raised.

    It does what `asyncio.timeout` does, without coroutines of its own: a request enters ten of these, and a
    stream one for each chunk.
    """

    __slots__ = ("_cancelling", "_ended", "_ends_at", "_task", "_timer")

    def __init__(self, ends_at: float | None) -> None:
        """`ends_at`: by the event loop's clock; None if only `end` ends it."""
        self._ends_at = ends_at
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None

    @abstractmethod
    def late(self) -> Exception:
        """The error that is raised in place of the cancellation."""

    def end(self) -> None:
        """End the block now. A second call does nothing."""
        if not self._ended:
            self._ended = True
            self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a scope is entered outside of a task")
        self._task = task
        self._cancelling = task.cancelling()
        if self._ends_at is not None:
            self._timer = asyncio.get_running_loop().call_at(self._ends_at, self.end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # If the task was cancelled by someone else as well, that cancellation goes on.
        if self._ended and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self.late() from None


class _Phase(Scope):
    __slots__ = ("_instance", "_seconds", "_what")

    def __init__(self, seconds: float, instance: str, what: str) -> None:
        super().__init__(asyncio.get_running_loop().time() + seconds)
        self._seconds = seconds
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
    __slots__ = ("_seconds",)

    def __init__(self, limit: "TimeLimit") -> None:
        super().__init__(limit.ends_at)
        self._seconds = limit.seconds or 0.0

    def late(self) -> GatewayTimeoutError:
        return GatewayTimeoutError(f"the request took longer than its limit of {self._seconds:g} s")


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
        value = given[0].strip()
        if len(given) > 1 or not (value.isascii() and value.isdecimal() and len(value) <= MAX_DIGITS):
            raise _bad_limit(", ".join(given))
        if not int(value):
            raise _bad_limit(value)
        limits.append(int(value) / 1000)
    if not limits:
        return NO_LIMIT
    return TimeLimit(min(limits), arrived_at + min(limits))


def _bad_limit(given: str) -> BadRequestError:
    return BadRequestError(
        f"{REQUEST_TIMEOUT_MS} must be a whole number of milliseconds above 0, not {given[:40]!r}",
        param=REQUEST_TIMEOUT_MS,
    )
