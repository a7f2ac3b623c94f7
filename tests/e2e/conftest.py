"""One fleet of engines and one kvproxy in front of it serve all tests here: stand-ins first, then real
ones."""

import pathlib
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from tests.fleets import LEASE_S, START_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(START_S))


@pytest.fixture(scope="session", params=["stand-in", pytest.param("real", marks=pytest.mark.real)])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """One plain engine, two prefill, two decode. The plain one says what is right."""
    name = "real_engines" if request.param == "real" else "stand_in_engines"
    engines: Fleet = request.getfixturevalue(name)
    return engines


@pytest.fixture(scope="session")
def logs(fleet: Fleet) -> pathlib.Path:
    """Where the logs of this fleet and the kvproxys in front of it are."""
    return fleet.logs


@pytest.fixture(scope="session")
def proxy(fleet: Fleet, logs: pathlib.Path) -> Iterator[ProxyProcess]:
    """`kvproxy serve` over the fleet's prefill and decode engines; every request has two legs."""
    [port] = free_ports(1)
    with ProxyProcess(
        port,
        logs / "kvproxy.log",
        prefill=[spec.address for spec in fleet.of_role("prefill")],
        decode=[spec.address for spec in fleet.of_role("decode")],
        flags=["--decision-headers", "--kv-lease-s", str(LEASE_S), "--policy", "cache_affinity"],
        admin_key="for-tests",
    ) as running:
        running.wait_status("/ready")
        yield running


@pytest.fixture(scope="session")
def plain(fleet: Fleet) -> str:
    """URL of the engine that does both phases alone."""
    return fleet["plain-0"].url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=60)
    # Engines close idle connections after 5 s: a new one for each request cannot be a stale one.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:
        yield client
