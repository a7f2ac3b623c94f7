"""The memory of large bodies is given back however many end at once."""

import asyncio

from proxy.edge.app_keys import SERVICE
from proxy.request.discarding import Discarding
from tests.helpers.raw import POST
from tests.helpers.service import fleet, wait_until


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
