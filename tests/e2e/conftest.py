"""One fleet of real engines and one kvproxy in front of it serve all tests here."""

import pathlib
import shutil
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from live.ports import free_ports
from live.proxy import ProxyProcess
from vllm_cpu.engine import ROOT
from vllm_cpu.fleet import Fleet, plan

LOGS = ROOT / ".engines" / "tests"
LEASE_S = 20
START_S = 420  # five engines on two busy cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.timeout(START_S))


@pytest.fixture(scope="session")
def logs() -> pathlib.Path:
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    return LOGS


@pytest.fixture(scope="session")
def fleet(logs: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """One plain engine, two prefill, two decode. The plain one says what is right."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert terminal is not None
    assert capture is not None

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(line)

    specs = plan(
        plain=1,
        prefill=2,
        decode=2,
        lease_s=LEASE_S,
        loras=("alpha",),
        flags=("--enable-request-id-headers",),
    )
    say(f"\nstarting {len(specs)} real engines, logs in {logs}")
    with Fleet(specs, logs, say=say) as engines:
        engines.start()
        engines.wait_healthy(timeout_s=START_S - 60)
        yield engines


@pytest.fixture(scope="session")
def proxy(fleet: Fleet, logs: pathlib.Path) -> Iterator[ProxyProcess]:
    """`kvproxy serve` over the fleet's prefill and decode engines."""
    [port] = free_ports(1)
    with ProxyProcess(
        port,
        logs / "kvproxy.log",
        prefill=[spec.address for spec in fleet.of_role("prefill")],
        decode=[spec.address for spec in fleet.of_role("decode")],
        flags=["--decision-headers", "--kv-lease-s", str(LEASE_S)],
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
