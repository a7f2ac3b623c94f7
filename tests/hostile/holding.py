"""Attacks that hold on to something and say next to nothing: what matters is what somebody else is answered
meanwhile."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.hostile.attacks import COMPLETIONS, MB, attack
from tests.hostile.target import HOST, Said, Target

WITHHELD = 24
"""Bodies without their ends: more than all memory for bodies holds."""

IDLE = 2000
"""Connections without a request. What opening and closing them at once costs grows with their number, 8 µs
each."""

DRIPPING = 500
DRIPS = 10
DRIP_EVERY_S = 0.2

BYSTANDER = b'{"model": "tiny", "prompt": "Hi", "max_tokens": 1}'
_POST = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@contextlib.asynccontextmanager
async def connections(target: Target, count: int) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """So many connections, as long as kvproxy lets them be."""
    writers = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection(HOST, target.port)
            writers.append(writer)
        yield writers
    finally:
        for writer in writers:
            writer.close()
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def write(writer: asyncio.StreamWriter, data: bytes) -> bool:
    """Send what can be sent; False once kvproxy has closed the connection."""
    try:
        writer.write(data)
        await writer.drain()
    except OSError:
        return False
    return True


async def bystander(target: Target, sent_bytes: int, *, connections: int, requests: int) -> Said:
    """What a small request of somebody else is answered, besides so many."""
    said = await target.post(COMPLETIONS, [BYSTANDER])
    return Said(said.status, said.body, sent_bytes, requests + 1, connections + 1)


@attack(repeats=False)
async def withheld_ends(target: Target) -> Said:
    """24 bodies of 60 MB whose last byte does not come; then a small request."""
    head = _POST % (COMPLETIONS.encode(), 60 * MB)
    sent_bytes = 0
    async with connections(target, WITHHELD) as writers:
        for writer in writers:
            going = await write(writer, head)
            for size in [MB] * 59 + [MB - 1]:
                if not going:
                    break
                going = await write(writer, b" " * size)
                sent_bytes += size
        return await bystander(target, sent_bytes, connections=WITHHELD, requests=WITHHELD)


@attack(repeats=False)
async def idle_connections(target: Target) -> Said:
    """2000 connections that say nothing; then a small request."""
    async with connections(target, IDLE):
        return await bystander(target, 0, connections=IDLE, requests=0)


@attack(repeats=False)
async def dripping_bodies(target: Target) -> Said:
    """500 bodies that come byte by byte; then a small request."""
    head = _POST % (COMPLETIONS.encode(), MB)
    async with connections(target, DRIPPING) as writers:
        for writer in writers:
            await write(writer, head)
        for _ in range(DRIPS):
            for writer in writers:
                await write(writer, b" ")
            await asyncio.sleep(DRIP_EVERY_S)
        sent_bytes = DRIPPING * DRIPS
        return await bystander(target, sent_bytes, connections=DRIPPING, requests=DRIPPING)
