"""Every wait has an end: a phase that takes too long fails its leg, a request that takes too long fails with 504."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from proxy.errors import BadRequestError, DeadlineError, GatewayTimeoutError
from proxy.headers import REQUEST_TIMEOUT_MS

MAX_DIGITS = 12
"""Of a client's time limit: thirty years in milliseconds; more digits are a mistake."""


@contextlib.asynccontextmanager
async def within(seconds: float, instance: str, what: str) -> AsyncIterator[None]:
    """Do what is inside in that time, or raise DeadlineError for the instance; `what` names the phase."""
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineError(instance, f"{what} took longer than {seconds:g} s") from None


class TimeLimit(NamedTuple):
    """How long one request may take in all."""

    seconds: float | None
    """None for as long as it likes."""
    ends_at: float | None
    """On the event loop's clock, which is the monotonic one."""

    @contextlib.asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Do what is inside until time is up; it is cancelled then, and this raises GatewayTimeoutError."""
        try:
            async with asyncio.timeout_at(self.ends_at) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            words = f"the request took longer than its limit of {self.seconds or 0:g} s"
            raise GatewayTimeoutError(words) from None


NO_LIMIT = TimeLimit(None, None)


def time_limit(given: Sequence[str], configured_s: float, arrived_at: float) -> TimeLimit:
    """The limit of a request that arrived then (monotonic seconds).

    `given` are the values of the client's X-Request-Timeout-Ms, `configured_s` is --request-timeout (0: none); the
    shorter one wins. Raises BadRequestError.
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
