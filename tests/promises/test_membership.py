"""With --state-dir the changes that operators made over /instances/* outlive a restart, whatever became of
the engines.
"""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from proxy.config import Config, Security, State
from proxy.edge.app_keys import SERVICE
from proxy.fleet import Status
from proxy.phases import Role
from proxy.simulation import StandIn, StandInConfig
from proxy.tuning import TUNING, Tuning
from proxy.watching.membership.kept import Kept
from proxy.watching.membership.members import FORMAT
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from tests.helpers.service import ADMIN_KEY, Engines, Service, ask, engines, kvproxy, wait_until


@pytest.fixture
def at(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def config(made: Engines, at: pathlib.Path, **settings: Any) -> Config:
    return made.config(**{"state": State(state_dir=at), "startup_timeout_s": 600.0} | settings)


@contextlib.asynccontextmanager
async def served(
    made: Engines, at: pathlib.Path, *, tuning: Tuning = TUNING, **settings: Any
) -> AsyncIterator[Service]:
    async with kvproxy(config(made, at, **settings), ready=False, tuning=tuning) as service:
        await wait_until(lambda: len(service.fleet) > 0, "its instances")
        yield service


def kept_by(service: Service) -> Kept:
    kept = service.app[SERVICE].membership._kept
    assert kept is not None
    return kept


def names(directory: pathlib.Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def put(at: pathlib.Path, content: bytes | None) -> None:
    """What lies there instead of what kvproxy wrote; None for something to hang on."""
    at.mkdir(mode=0o700)
    if content is None:
        os.mkfifo(at / "instances.json")
    else:
        (at / "instances.json").write_bytes(content)


async def change(service: Service, what: str, **body: Any) -> None:
    answer = await service.admin(f"/instances/{what}", body)
    assert answer.status == 200, answer.body


async def shown(service: Service) -> dict[str, tuple[str, str]]:
    """Role and state of each instance, as `/status` has it."""
    return {i["instance"]: (i["role"], i["state"]) for i in (await service.ask("/status")).json["instances"]}


async def becomes(service: Service, expected: dict[str, tuple[str, str]]) -> None:
    for _ in range(2000):
        if await shown(service) == expected:
            return
        await asyncio.sleep(0.01)
    assert await shown(service) == expected


async def test_what_was_added_drained_and_removed_is_so_after_a_restart(at: pathlib.Path) -> None:
    async with engines(2, 2) as made, StandIn() as new, StandIn() as brief:
        p, d = made.prefill[0].address, made.decode[0].address
        async with served(made, at) as service:
            named = f"{new.address}?events={new.events_endpoint}&replay={new.replay_endpoint}"
            await change(service, "add", type="decode", instance=named)
            await change(service, "drain", instance=new.address)
            await change(service, "drain", instance=p)
            await change(service, "add", type="prefill", instance=brief.address)
            await change(service, "remove", instance=brief.address)
            await change(service, "drain", instance=d)
            await change(service, "drain", instance=d, undo=True)
        expected = {e.address: ("prefill", "up") for e in made.prefill}
        expected |= {e.address: ("decode", "up") for e in made.decode}
        expected |= {new.address: ("decode", "draining"), p: ("prefill", "draining")}
        async with served(made, at) as service:
            await becomes(service, expected)
            back = service.fleet.get(new.address)
            assert back is not None
            [source] = back.spec.event_sources
            assert (source.endpoint, source.replay_endpoint) == (new.events_endpoint, new.replay_endpoint)
            assert (await service.complete("hello")).status == 200
            await change(service, "drain", instance=new.address, undo=True)
            await change(service, "drain", instance=p, undo=True)
        async with served(made, at) as service:
            await becomes(service, expected | {new.address: ("decode", "up"), p: ("prefill", "up")})
            await change(service, "remove", instance=new.address, force=True)
        async with served(made, at) as service:
            assert new.address not in await shown(service)


async def test_without_kv_events_no_cache_is_kept(at: pathlib.Path) -> None:
    async with engines(2, 1) as made:
        p = made.prefill[0].address
        async with served(made, at, kv_events=False) as service:
            await change(service, "drain", instance=p)
            assert (await service.ask("/status")).json["state_dir"] is None
        kept = {name for name in names(at) if name.endswith(".json")}
        assert kept == {"instances.json", "responses.json"}
        async with served(made, at, kv_events=False) as service:
            assert (await shown(service))[p] == ("prefill", "draining")


async def test_without_a_state_directory_a_restart_begins_with_the_flags(at: pathlib.Path) -> None:
    async with engines(1, 1) as made, StandIn() as new:
        for _ in range(2):
            async with kvproxy(made.config()) as service:
                assert service.app[SERVICE].membership._kept is None
                assert len(service.fleet) == 2
                await change(service, "add", type="decode", instance=new.address)
    assert names(at.parent) == []


async def test_a_change_outlives_sigkill_the_moment_it_is_answered(
    at: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    async with engines(1, 1) as made, StandIn() as new, aiohttp.ClientSession() as session:

        def process(life: int) -> ProxyProcess:
            [port] = free_ports(1)
            flags = ["--state-dir", str(at)]
            log = tmp_path / f"kvproxy-{life}.log"
            p, d = [made.prefill[0].address], [made.decode[0].address]
            return ProxyProcess(port, log, prefill=p, decode=d, flags=flags, admin_key=ADMIN_KEY)

        with process(0) as proxy:
            await asyncio.to_thread(proxy.wait_status, "/ready")
            for path, body in (
                ("/instances/add", {"type": "decode", "instance": new.address}),
                ("/instances/drain", {"instance": made.decode[0].address}),
            ):
                answer = await ask(session, proxy.url, path, body, X_API_Key=ADMIN_KEY)
                assert answer.status == 200
            os.kill(proxy.pid, signal.SIGKILL)
            await asyncio.to_thread(proxy.wait, 10)
        with process(1) as proxy:
            await asyncio.to_thread(proxy.wait_status, "/ready")  # by the instance that no flag names
            answer = await ask(session, proxy.url, "/v1/completions", {"prompt": "hello", "max_tokens": 2})
            assert answer.status == 200
            assert [leg.path for leg in new.seen].count("/v1/completions") == 1
            status = (await ask(session, proxy.url, "/status")).json
            states = {i["instance"]: i["state"] for i in status["instances"]}
            assert states[made.decode[0].address] == "draining"


async def test_an_instance_that_is_down_or_serves_another_model_by_now_ends_no_start(
    at: pathlib.Path,
) -> None:
    async with engines(1, 1) as made, StandIn() as down, StandIn() as other:
        async with served(made, at) as service:
            await change(service, "add", type="decode", instance=down.address)
            await change(service, "add", type="prefill", instance=other.address)
        await down.stop()
        await other.stop()
        port = int(other.address.rpartition(":")[2])
        async with (
            StandIn(StandInConfig(model="another", port=port)),
            served(made, at, startup_timeout_s=0.5) as service,
        ):
            states = {down.address: ("decode", "down"), other.address: ("prefill", "refused")}
            up = {made.prefill[0].address: ("prefill", "up"), made.decode[0].address: ("decode", "up")}
            await becomes(service, up | states)
            assert (await service.complete("hello")).status == 200
            assert not service.app[SERVICE].watch.fatal.done()


async def test_a_fleet_that_was_drained_is_no_start_that_failed(
    at: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engines(1, 1) as made:
        async with served(made, at) as service:
            await change(service, "drain", instance=made.decode[0].address)
        async with served(made, at, startup_timeout_s=5.0) as service:
            await wait_until(lambda: any("started, but not ready" in m for m in caplog.messages), "its word")
            assert not service.app[SERVICE].watch.fatal.done()
            assert (await service.ask("/ready")).status == 503
            await change(service, "drain", instance=made.decode[0].address, undo=True)
            await wait_until(lambda: service.fleet.ready, "readiness")


async def test_flags_win_and_the_log_says_so_once(at: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    async with engines(1, 2) as made, StandIn() as new:
        gone = made.decode[1].address
        async with served(made, at) as service:
            await change(service, "remove", instance=gone)
            await change(service, "add", type="decode", instance=new.address)
        named = Engines([*made.prefill, new], made.decode, [])
        for life in range(2):
            caplog.clear()
            async with served(named, at) as service:
                instance = service.fleet.get(new.address)
                assert instance is not None
                assert instance.role is Role.PREFILL
                assert service.fleet.get(gone) is not None
                said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
                lines = [line for line in said if gone in line or new.address in line]
                assert len(lines) == (0 if life else 2), "what the flags decided is no news at the next start"


async def test_an_instance_that_may_not_be_added_any_more_does_not_come_back(at: pathlib.Path) -> None:
    async with engines(1, 1) as made, StandIn() as new:
        async with served(made, at) as service:
            await change(service, "add", type="decode", instance=new.address)
        async with served(made, at, security=Security(allow_instances=["10.0.0.0/8"])) as service:
            assert new.address not in await shown(service)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read"),
        (b"\x00" * 5_000_000, "it has 5000000 bytes"),
        (json.dumps({"format": FORMAT, "model": "other"}).encode(), "'other', not 'tiny'"),
        (None, "it is not a file"),
    ],
)
async def test_a_bad_or_foreign_file_is_set_aside_with_a_line(
    at: pathlib.Path, content: bytes | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(at, content)
    async with engines(1, 1) as made, StandIn() as new:
        async with served(made, at) as service:
            [line] = [m for m in caplog.messages if "set aside" in m]
            assert words in line
            assert "instances.json.broken-" in line
            assert "instances.json" not in names(at)
            await change(service, "add", type="decode", instance=new.address)
        async with served(made, at) as service:
            assert new.address in await shown(service)
    assert sum(name.startswith("instances.json.broken-") for name in names(at)) == 1


async def test_a_disk_that_fails_keeps_nobody_from_changing_anything(
    at: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_data: bytes) -> None:
        raise OSError(28, os.strerror(28))

    async with engines(1, 1) as made, StandIn() as new, served(made, at) as service:
        monkeypatch.setattr(kept_by(service)._directory, "write_instances", full)
        await change(service, "add", type="decode", instance=new.address)
        assert new.address in await shown(service)
        [line] = [m for m in caplog.messages if "a restart forgets" in m]
        assert "No space left on device" in line


async def test_a_disk_that_hangs_holds_nobody_up_for_long(
    at: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    async with engines(1, 1) as made, StandIn() as new:
        async with served(made, at, tuning=Tuning(write_instances_s=0.1)) as service:
            directory = kept_by(service)._directory
            write = directory.write_instances

            def slow(data: bytes) -> None:
                answers.wait(60)
                write(data)

            monkeypatch.setattr(directory, "write_instances", slow)
            await change(service, "add", type="decode", instance=new.address)
            await change(service, "drain", instance=new.address)
            assert sum("not on disk yet" in m for m in caplog.messages) == 2
            answers.set()
            await wait_until(kept_by(service)._writing.done, "the disk")  # type: ignore[union-attr]  # it wrote
        async with served(made, at) as service:
            await wait_until(lambda: service.fleet.get(new.address) is not None, "its instances")
            assert (await shown(service))[new.address] == ("decode", "draining")


async def test_an_instance_that_is_being_removed_as_kvproxy_ends_is_gone_afterwards(at: pathlib.Path) -> None:
    """A removal that waits for its legs is one at the next start."""
    async with engines(1, 1) as made, StandIn() as new:
        async with served(made, at) as service:
            await change(service, "add", type="decode", instance=new.address)
            instance = service.fleet.get(new.address)
            assert instance is not None
            await wait_until(lambda: instance.status is Status.UP, "up")
            service.fleet.hold_began(new.address)  # something of it is still wanted
            await change(service, "remove", instance=new.address)
            assert service.fleet.get(new.address) is instance
            service.fleet.hold_ended(new.address)
        async with served(made, at) as service:
            assert new.address not in await shown(service)
