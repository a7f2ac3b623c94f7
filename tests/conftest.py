"""Options of every test: --real runs the tests on real engines, last, and lets none of them be skipped.

Also the fleets of engines that several folders of tests share.
"""

import shutil
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.engines.stand_in import StandInFleet
from tests import fleets

REAL = pytest.StashKey[int]()

# What is measured is what comes out, not how fast: machines stall.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also run the tests that need real vLLM engines")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    real = [item for item in items if item.get_closest_marker("real")]
    others = [item for item in items if not item.get_closest_marker("real")]
    if config.getoption("--real"):
        items[:] = others + real  # what is quick to fail comes first
    else:
        items[:] = others
        config.stash[REAL] = len(real)
        config.hook.pytest_deselected(items=real)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("real"):
        report.outcome = "failed"
        report.longrepr = f"no test may be skipped with --real: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(REAL, 0):
        terminalreporter.write_line(
            f"{left_out} tests on real vLLM engines were left out; run them with: scripts/test.sh --real"
        )


@pytest.fixture(scope="session", autouse=True)
def end_on_sigterm() -> Iterator[None]:
    """A SIGTERM ends the session as Ctrl-C does: fixtures close, engines stop."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def real_engines(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """One fleet of real engines for the whole session."""
    shutil.rmtree(fleets.LOGS, ignore_errors=True)
    fleets.LOGS.mkdir(parents=True)
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert terminal is not None
    assert capture is not None

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(line)

    with fleets.real_engines(fleets.LOGS, say) as engines:
        yield engines


@pytest.fixture(scope="session")
def stand_in_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInFleet]:
    """One fleet of stand-ins for the whole session, planned as the real one."""
    with fleets.stand_in_engines(tmp_path_factory.mktemp("stand-ins")) as engines:
        yield engines
