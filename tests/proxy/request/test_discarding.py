"""However many large bodies end at once, their memory goes one by one, and all of it goes."""

import asyncio
import weakref

from proxy.edge.app_keys import SERVICE
from proxy.request.discarding import LARGE_BYTES, Discarding
from tests.helpers.raw import POST
from tests.helpers.service import fleet, wait_until


class Body(bytearray):
    """One whose end can be seen."""


async def test_one_a_turn() -> None:
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


async def test_bodies_of_clients_that_leave_together_go_one_by_one() -> None:
    most = 0

    class Watched(Discarding):
        def add(self, data: bytearray) -> None:
            nonlocal most
            super().add(data)
            most = max(most, len(self))

    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        pair.service.app[SERVICE].discarding = Watched(every_s=0.05)
        budget = pair.service.app[SERVICE].bodies
        writers = []
        for _ in range(5):
            _, writer = await asyncio.open_connection(pair.service.host, pair.service.port)
            writer.write(POST + b"Content-Length: 3000000\r\n\r\n" + b" " * 2_000_000)
            writers.append(writer)
        await wait_until(lambda: budget.held_bytes == 10_000_000, "five bodies without their ends")
        for writer in writers:
            writer.close()
        await wait_until(lambda: budget.held_bytes == 0, "the end of the leases")
        await wait_until(lambda: not len(pair.service.app[SERVICE].discarding), "the end of the bodies")
        assert most > 1
