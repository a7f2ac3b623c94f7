"""One plain engine, and kvproxy in front of one prefill and one decode engine: stand-ins first, then real
ones. All can call tools.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from tests import fleets

KINDS = [
    "stand-in",
    pytest.param("real", marks=[pytest.mark.real, pytest.mark.timeout(fleets.START_S)]),
]


@dataclasses.dataclass(frozen=True)
class Sides:
    """The two that are compared."""

    plain: str
    proxy: ProxyProcess
    real: bool


@pytest.fixture(scope="session", params=KINDS)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    real = request.param == "real"
    logs: pathlib.Path = tmp_path_factory.mktemp(f"fidelity-{request.param}")
    with contextlib.ExitStack() as stack:
        engines: Fleet = stack.enter_context(fleets.with_tools(logs, real=real))
        [port] = free_ports(1)
        proxy = stack.enter_context(
            ProxyProcess(
                port,
                logs / "kvproxy.log",
                prefill=[spec.address for spec in engines.of_role("prefill")],
                decode=[spec.address for spec in engines.of_role("decode")],
                # Two legs, however short the prompt is.
                flags=["--decision-headers", "--bypass", "off", "--kv-lease-s", str(fleets.LEASE_S)],
            )
        )
        proxy.wait_status("/ready")
        yield Sides(engines["plain-0"].url, proxy, real)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:
        yield client
