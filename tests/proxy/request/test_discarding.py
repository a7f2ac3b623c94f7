"""However many large bodies end at once, their memory goes one by one, and all of it goes."""

import asyncio
import weakref

from proxy.request.discarding import LARGE_BYTES, Discarding
from tests.helpers.service import wait_until


class Body(bytearray):
    """One whose end can be seen."""


async def test_one_body_is_discarded_a_turn() -> None:
    them = Discarding(every_s=0.0)
    bodies = [Body(LARGE_BYTES) for _ in range(8)]
    seen = [weakref.ref(body) for body in bodies]
    while bodies:
        them.add(bodies.pop())
    for left in range(7, -1, -1):
        before = sum(body() is not None for body in seen)
        async with asyncio.timeout(10):
            while len(them) != left:  # noqa: ASYNC110  # turns are what is counted
                await asyncio.sleep(0)
        assert before - sum(body() is not None for body in seen) == 1
    them.add(Body(LARGE_BYTES))  # and it begins anew
    await wait_until(lambda: not len(them), "the end of another one")


async def test_small_ones_go_at_once() -> None:
    them = Discarding()
    them.add(bytearray(LARGE_BYTES - 1))
    assert not len(them)
