"""Every test here runs on stand-ins and, with --real, on vLLM: what one does the other does."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import zmq.asyncio

from scripts.workshop.engines.fleet import Fleet
from tests.contract.asking import Engine
from tests.contract.pairs import Pair
from tests.contract.prompts import ids
from tests.contract.unclaimed import Unclaimed
from tests.fleets import START_S

KINDS = [
    "stand_in",
    pytest.param("real", marks=[pytest.mark.real, pytest.mark.timeout(START_S)]),
]


@pytest.fixture(scope="session", params=KINDS)
def engines(request: pytest.FixtureRequest) -> Fleet:
    """One plain engine, two prefill, two decode."""
    fleet = request.getfixturevalue(f"{request.param}_engines")
    assert isinstance(fleet, Fleet)
    return fleet


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=60)
    # Engines close idle connections after 5 s: a new one for each request cannot be a stale one.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:
        yield client


@pytest.fixture
def engine(engines: Fleet, session: aiohttp.ClientSession, unclaimed: Unclaimed) -> Engine:
    """The engine that does both phases alone."""
    return Engine(engines["plain-0"], session)


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    opened = zmq.asyncio.Context()
    yield opened
    opened.destroy(linger=0)


@pytest.fixture(scope="session")
def unclaimed(engines: Fleet) -> Unclaimed:
    """Holds that nobody will ask for, left on the second prefill engine long before somebody looks."""
    return Unclaimed.leave(engines["prefill-1"])


@pytest.fixture
async def pair(engines: Fleet, session: aiohttp.ClientSession, engine: Engine) -> AsyncIterator[Pair]:
    """A pair that has spoken before. It holds nothing, before a test and after it."""
    made = Pair(Engine(engines["prefill-0"], session), Engine(engines["decode-0"], session), engine)
    await made.served(ids(5, "a handshake first"))
    await made.freed()
    yield made
    await made.freed()
    await made.decode.at_rest()
