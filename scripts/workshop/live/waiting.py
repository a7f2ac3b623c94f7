"""Wait for a condition with a deadline: the only way tests and the demo let time pass."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_EVERY_S = 0.05


async def wait_until(condition: Callable[[], Awaitable[T]], timeout_s: float, what: str) -> T:
    """Return the first true value of `condition`, asked again and again; TimeoutError with its last value."""
    end = time.monotonic() + timeout_s
    while not (value := await condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s: {what} (last seen: {value!r})")
        await asyncio.sleep(_EVERY_S)
    return value
