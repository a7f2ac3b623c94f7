"""Stand-ins on free loopback ports, closed when a test ends; models that are driven by hand."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from proxy.simulation import StandIn, StandInConfig
from tests.proxy.simulation.driving import COMPLETIONS

Ask = Callable[..., Awaitable[tuple[int, Any]]]
Start = Callable[..., Awaitable[StandIn]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts stand-ins with the configuration's fields as keywords."""
    async with AsyncExitStack() as stack:

        async def start_one(**fields: Any) -> StandIn:
            return await stack.enter_async_context(StandIn(StandInConfig(**fields)))

        yield start_one


@pytest.fixture
async def engine(start: Start) -> StandIn:
    return await start(block_size=4, blocks=64, max_model_len=200, loras=("alpha",))


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session


@pytest.fixture
def ask(http: aiohttp.ClientSession) -> Ask:
    """POST a body; status and parsed answer."""

    async def post(engine: StandIn, body: Any, path: str = COMPLETIONS, **headers: str) -> tuple[int, Any]:
        async with http.post(engine.url + path, json=body, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    return post


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait for a condition, at most ten seconds."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # any state, most of it without an event
                await asyncio.sleep(0.002)

    return wait
