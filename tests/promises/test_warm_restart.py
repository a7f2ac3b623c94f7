"""A kvproxy that starts again on its state directory knows what it knew before, if and only if that is still
true.
"""

import asyncio
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterable
from typing import Any

import aiohttp
import pytest

from proxy.config import State
from proxy.scheduling.policies import RoundRobin
from proxy.simulation import StandIn
from proxy.snapshots.directory import StateDirectory
from proxy.tuning import Tuning
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from tests.helpers.service import Engines, Service, ask, engines, kvproxy, prose, wait_until

WRAPS: dict[str, Any] = {"buffer_steps": 5}
"""Settings of stand-ins that replay the last five batches: what came before is only known to who heard it."""
SEVERAL = 12


@pytest.fixture
def at(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "state"


def kept(at: pathlib.Path, interval_s: float = 3600.0) -> Any:
    return State(state_dir=at, state_interval_s=interval_s)


async def chat(service: Service, several: int = SEVERAL, seed: int = 0) -> None:
    for number in range(several):
        answer = await service.chat(prose(60, seed + number))
        assert answer.status == 200
    await service.settled()


def known(service: Service) -> dict[str, int]:
    """Blocks in the index by instance."""
    index = service.keeper._index
    return {slot.instance: blocks for slot, blocks in index.blocks().items() if blocks}


def cached(made: Engines) -> dict[str, int]:
    """Blocks that the engines really have."""
    counts = {engine.address: engine.model.cache.pool.cached_blocks for engine in made.all}
    return {address: blocks for address, blocks in counts.items() if blocks}


async def heard_all(service: Service, made: Engines) -> None:
    await wait_until(lambda: known(service) == cached(made), "an index that is what the engines have")


async def rank(service: Service, engine: StandIn) -> Any:
    status = (await service.ask("/status")).json
    [instance] = [each for each in status["instances"] if each["instance"] == engine.address]
    return instance["ranks"][0]


def files(at: pathlib.Path, pattern: str = "*.snapshot") -> list[pathlib.Path]:
    return sorted(at.glob(pattern))


def snapshots(at: pathlib.Path) -> set[str]:
    return {path.name for path in files(at)}


async def test_a_restart_loses_nothing(at: pathlib.Path) -> None:
    async with engines(1, 1, **WRAPS) as made:
        async with kvproxy(made.config(state=kept(at))) as service:
            await chat(service)
            await heard_all(service, made)
            told = await rank(service, made.prefill[0])
            assert told["snapshot"]["restored"] == "none"
        before = cached(made)
        assert len(before) == 2
        assert all(engine.publisher.next_number > 2 * WRAPS["buffer_steps"] for engine in made.all)
        async with kvproxy(made.config(state=kept(at))) as service:  # which waits until all are exact
            assert known(service) == before == cached(made)
            for engine in made.all:
                told = await rank(service, engine)
                assert told["index"] == "exact"
                assert told["snapshot"]["restored"] == "restored"
                assert told["snapshot"]["restored_blocks"] == told["blocks"] == before[engine.address]
            assert await service.metric("kvproxy_snapshot_restores_total", outcome="restored") == 2
            assert await service.metric("kvproxy_kv_events_total", instance=made.prefill[0].address) == 0
            body = {"model": "tiny", "messages": [{"role": "user", "content": prose(60, 3)}], "max_tokens": 8}
            explained = await service.explain(body)
            [candidate] = explained["prefill"]["candidates"]
            answer = await service.chat(prose(60, 3))
            assert (
                answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
                == candidate["cached_tokens"]
                > 0
            )
            await chat(service, 2, seed=50)
            await heard_all(service, made)


async def test_without_a_state_directory_a_restart_loses_what_was_known(at: pathlib.Path) -> None:
    async with engines(1, 1, **WRAPS) as made:
        async with kvproxy(made.config(state=kept(at))) as service:
            await chat(service)
            await heard_all(service, made)
            [(blocks, prefill)] = [(known(service)[e.address], e) for e in made.prefill]
        async with kvproxy(made.config(), ready=False) as service:

            def state() -> str | None:
                instance = service.fleet.get(prefill.address)
                return instance.index_state(0) if instance is not None else None

            await wait_until(lambda: state() == "partial", "its replay")
            status = (await service.ask("/status")).json
            assert status["state_dir"] is None
            assert 0 < status["instances"][0]["blocks"] < blocks
            assert status["instances"][0]["ranks"][0]["snapshot"] is None


async def test_an_engine_restarted_meanwhile_is_not_believed_to_have_anything(at: pathlib.Path) -> None:
    async with engines(1, 1) as made:
        async with kvproxy(made.config(state=kept(at))) as service:
            await chat(service)
            await heard_all(service, made)
        await made.prefill[0].restart()
        decode = made.decode[0].address
        async with kvproxy(made.config(state=kept(at))) as service:
            assert known(service) == cached(made)
            assert known(service).keys() == {decode}
            told = (await rank(service, made.prefill[0]))["snapshot"]
            assert (told["restored"], told["why"]) == ("stale", "the engine was restarted meanwhile")
            assert await service.metric("kvproxy_snapshot_restores_total", outcome="new_process") == 1
            await chat(service)
            await heard_all(service, made)


async def test_a_broken_snapshot_is_set_aside_and_the_service_goes_on(
    at: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engines(1, 1) as made:
        async with kvproxy(made.config(state=kept(at))) as service:
            await chat(service)
            await heard_all(service, made)
        for number, file in enumerate(files(at)):
            data = bytearray(file.read_bytes())
            if number:
                data[len(data) // 2] ^= 1
            else:
                del data[-1]
            file.write_bytes(data)
        async with kvproxy(made.config(state=kept(at))) as service:
            assert known(service) == cached(made)
            told = (await rank(service, made.prefill[0]))["snapshot"]
            assert told["restored"] == "none"
            assert "checksum" in told["why"]
            assert await service.metric("kvproxy_snapshots_total", outcome="broken") == 2
        assert len(files(at, "*.broken-*")) == 2
        assert len(snapshots(at)) == 2, "they were written anew"
        assert caplog.text.count("was set aside as") == 2


async def test_snapshots_of_another_secret_or_rank_are_worth_nothing(
    at: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engines(1, 1) as made:
        async with kvproxy(made.config(state=kept(at))) as service:
            await chat(service)
            await heard_all(service, made)
        one, other = files(at)
        other.write_bytes(one.read_bytes())
        async with kvproxy(made.config(state=kept(at))) as service:
            assert known(service) == cached(made)
        assert "it is one of 127.0.0.1" in caplog.text
        (at / "secret").unlink()
        async with kvproxy(made.config(state=kept(at))) as service:
            assert known(service) == cached(made)
            assert await service.metric("kvproxy_snapshots_total", outcome="broken") == 2
        assert caplog.text.count("made with another secret") == 2


async def test_nothing_is_written_while_nothing_changed(at: pathlib.Path) -> None:
    async with engines(1, 1) as made, kvproxy(made.config(state=kept(at))) as service:
        keeper = service.keeper

        async def written() -> float:
            await keeper._write_all()
            return await service.metric("kvproxy_snapshots_total", outcome="written")

        assert await written() == 0
        await chat(service, 2)
        await heard_all(service, made)
        first = await written()
        assert first == 2
        assert await service.metric("kvproxy_snapshot_bytes") == sum(
            path.stat().st_size for path in files(at)
        )
        assert await service.metric("kvproxy_snapshot_duration_seconds_count") == 2
        assert await written() == first
        await chat(service, 1, seed=9)
        await heard_all(service, made)
        assert await written() == first + 2
        status = (await service.ask("/status")).json["state_dir"]
        assert (status["snapshots"], status["failed"]) == (2, None)
        assert status["last_written_s"] is not None
    assert len(snapshots(at)) == 2


async def test_ranks_that_changed_are_written_at_intervals(at: pathlib.Path) -> None:
    async with engines(1, 1) as made, kvproxy(made.config(state=kept(at, 0.02))) as service:
        await chat(service, 2)
        await wait_until(lambda: len(snapshots(at)) == 2, "snapshots")
        ages = service.keeper.ages_s
        await wait_until(lambda: len(ages()) == 2 and max(ages().values()) < 5, "snapshots that are young")


async def test_a_full_disk_is_logged_and_harms_no_request(
    at: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    write = StateDirectory.write

    def may_write(directory: StateDirectory, instance: str, rank: int, data: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        write(directory, instance, rank, data)

    monkeypatch.setattr(StateDirectory, "write", may_write)
    async with engines(1, 1) as made, kvproxy(made.config(state=kept(at))) as service:
        keeper = service.keeper
        for seed in (0, 20, 40):
            await chat(service, 2, seed)
            await heard_all(service, made)
            await keeper._write_all()
        assert await service.metric("kvproxy_snapshots_total", outcome="failed") == 6
        assert caplog.text.count("snapshots could not be written") == 1, "one line a minute"
        assert (await service.ask("/status")).json["state_dir"]["failed"] == "No space left on device"
        assert (await rank(service, made.prefill[0]))["snapshot"]["failed"] == "No space left on device"
        full = False
        await keeper._write_all()
        assert (await service.ask("/status")).json["state_dir"]["failed"] is None
        assert len(snapshots(at)) == 2


async def test_a_directory_that_goes_away_harms_nobody(at: pathlib.Path, tmp_path: pathlib.Path) -> None:
    async with engines(1, 1) as made, kvproxy(made.config(state=kept(at))) as service:
        await asyncio.to_thread(at.rename, tmp_path / "elsewhere")
        await chat(service, 2)
        await service.keeper._write_all()
        assert await service.metric("kvproxy_snapshots_total", outcome="failed") == 2
        gone = await service.admin(
            "/instances/remove", {"type": "decode", "instance": made.decode[0].address}
        )
        assert gone.status == 200


async def test_a_disk_that_hangs_keeps_no_engine_from_coming_up(
    at: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(StateDirectory, "read", lambda *_: let_go.wait(30) and None)
    impatient = Tuning(read_snapshot_s=0.05, last_snapshots_s=0.2)
    async with engines(1, 1) as made:
        async with kvproxy(made.config(state=kept(at)), tuning=impatient) as service:
            await chat(service, 2)
            await heard_all(service, made)
            assert "the disk does not answer" in (await rank(service, made.prefill[0]))["snapshot"]["why"]
        let_go.set()
    assert "not all could be written" in caplog.text


async def test_an_instance_that_left_leaves_nothing(at: pathlib.Path) -> None:
    async with engines(2, 1) as made:
        gone, stays = made.prefill
        async with kvproxy(made.config(state=kept(at)), RoundRobin()) as service:
            await chat(service, 8)
            await heard_all(service, made)
            await service.keeper._write_all()
            before = snapshots(at)
            assert len(before) == 3
            asked = {"type": "prefill", "instance": gone.address}
            assert (await service.admin("/instances/remove", asked | {"force": True})).status == 200
            await wait_until(lambda: len(snapshots(at)) == 2, "the removal of its snapshot")
            assert gone.address not in known(service)
            assert (await service.admin("/instances/add", asked)).status == 200
            await heard_all(service, made)
            assert (await rank(service, gone))["snapshot"]["restored"] == "none"
        assert snapshots(at) == before
        async with kvproxy(made.config(state=kept(at))) as service:
            assert (await rank(service, stays))["snapshot"]["restored"] == "restored"


async def test_snapshots_that_nobody_claims_go_after_an_hour(at: pathlib.Path) -> None:
    first = StateDirectory(at)
    first.write("10.9.9.9:1", 0, b"of an instance that was added at run time")
    first.close()
    async with engines(1, 1) as made:
        async with kvproxy(made.config(state=kept(at, 0.02))) as service:
            await chat(service, 2)
            await wait_until(lambda: len(snapshots(at)) == 3, "snapshots")
        async with kvproxy(made.config(state=kept(at, 0.02)), tuning=Tuning(unclaimed_s=0.0)) as service:
            await wait_until(lambda: len(snapshots(at)) == 2, "the removal of what nobody claims")
            assert known(service) == cached(made)


async def test_an_index_found_to_be_wrong_does_not_stay_on_disk(at: pathlib.Path) -> None:
    async with engines(1, 1) as made, kvproxy(made.config(state=kept(at))) as service:
        await chat(service, 3)
        await heard_all(service, made)
        keeper = service.keeper
        await keeper._write_all()
        written = await service.metric("kvproxy_snapshots_total", outcome="written")
        before = snapshots(at)
        instance = service.fleet.get(made.prefill[0].address)
        assert instance is not None
        source = instance.sources[0]
        source.subscriber.rebuild(replay=True)  # type: ignore[attr-defined]  # as the truth meter has it done
        await wait_until(lambda: source.epoch == 1 and source.state == "exact", "the rebuilding")
        await keeper._write_all()
        assert await service.metric("kvproxy_snapshots_total", outcome="written") == written + 1
        assert snapshots(at) == before
        source.subscriber.rebuild(replay=False)  # type: ignore[attr-defined]
        await wait_until(lambda: source.epoch == 2, "the forgetting")
        await keeper._write_all()
        assert len(snapshots(at)) == 1, "what was forgotten is not what a restart begins with"
        assert (await rank(service, made.prefill[0]))["snapshot"]["bytes"] == 0
        await chat(service, 1, seed=30)
        await keeper._write_all()
        assert snapshots(at) == before


async def test_an_index_that_is_not_trusted_is_not_written(at: pathlib.Path) -> None:
    async with engines(1, 1) as made, kvproxy(made.config(state=kept(at))) as service:
        await chat(service, 3)
        await heard_all(service, made)
        keeper = service.keeper
        await keeper._write_all()
        before = snapshots(at)
        doubted = made.prefill[0].address
        keeper._trusted = lambda instance, _rank: instance != doubted
        await keeper._write_all()
        assert len(snapshots(at)) == 1
        keeper._trusted = lambda _instance, _rank: True
        await keeper._write_all()
        assert snapshots(at) == before


async def test_a_rank_that_cannot_be_written_keeps_no_other_from_it(
    at: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engines(1, 1) as made, kvproxy(made.config(state=kept(at))) as service:
        await chat(service, 3)
        await heard_all(service, made)
        keeper = service.keeper
        put = keeper._put

        def fails(snapshot: Any) -> int:
            if snapshot.instance == made.prefill[0].address:
                raise OverflowError
            return put(snapshot)

        monkeypatch.setattr(keeper, "_put", fails)
        await keeper._write_all()
        assert len(snapshots(at)) == 1
        assert (await rank(service, made.prefill[0]))["snapshot"]["failed"] == "OverflowError"


async def test_a_rank_that_could_never_be_proven_is_not_written(at: pathlib.Path) -> None:
    async with (
        engines(1, 1, replay=None) as made,
        kvproxy(made.config(state=kept(at)), ready=False) as service,
    ):
        await wait_until(lambda: service.fleet.ready, "readiness")
        await chat(service, 3)
        await service.keeper._write_all()
        assert snapshots(at) == set()
        assert (await rank(service, made.prefill[0]))["snapshot"]["restored"] == "none"


# ---- processes ---------------------------------------------------------------------------------------------


def process(made: Engines, at: pathlib.Path, log: pathlib.Path, *flags: str) -> ProxyProcess:
    [port] = free_ports(1)
    return ProxyProcess(
        port,
        log,
        prefill=[engine.address for engine in made.prefill],
        decode=[engine.address for engine in made.decode],
        flags=["--state-dir", str(at), "--policy", "cache_affinity", *flags],
    )


async def status_of(session: aiohttp.ClientSession, proxy: ProxyProcess) -> Any:
    return (await ask(session, proxy.url, "/status")).json


async def all_exact(session: aiohttp.ClientSession, proxy: ProxyProcess) -> Any:
    async def exact() -> Any:
        status = await status_of(session, proxy)
        return status if all(each["index"] == "exact" for each in status["instances"]) else None

    for _ in range(1_000):
        if (status := await exact()) is not None:
            return status
        await asyncio.sleep(0.02)
    raise AssertionError("not all are exact")


async def test_killed_while_it_serves_and_writes_it_comes_back_exact(
    at: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """SIGKILL at any moment, twice, while it writes all the time; each time it goes on from what it wrote.

    The replay buffers reach back to what was on disk before the last requests, and no further.
    """
    last_requests, batches_each = 36, 3
    buffer = last_requests * batches_each + 20
    async with engines(1, 1, buffer_steps=buffer) as made, aiohttp.ClientSession() as session:
        for life in range(3):
            log = tmp_path / f"kvproxy-{life}.log"
            with process(made, at, log, "--state-interval", "0.01") as proxy:
                await asyncio.to_thread(proxy.wait_status, "/ready")
                status = await all_exact(session, proxy)
                blocks = {each["instance"]: each["blocks"] for each in status["instances"]}
                assert {address: count for address, count in blocks.items() if count} == cached(made)
                restored = [each["ranks"][0]["snapshot"]["restored"] for each in status["instances"]]
                assert restored == ["restored" if life else "none"] * 2
                for number in range(buffer * 2):
                    if min(engine.publisher.next_number for engine in made.all) > buffer:
                        break  # number 0 cannot be replayed any more
                    await ask_some(session, proxy, [10_000 + number])
                await on_disk(session, proxy)
                now = [engine.publisher.next_number for engine in made.all]
                async with asyncio.TaskGroup() as lanes:
                    for lane in range(3):
                        seeds = range(1000 * life + lane, 1000 * life + last_requests, 3)
                        lanes.create_task(ask_some(session, proxy, seeds))
                    await wait_until(
                        lambda now=now: sum(e.publisher.next_number for e in made.all) > sum(now) + 20,  # type: ignore[misc]
                        "requests that are served",
                    )
                    os.kill(proxy.pid, signal.SIGKILL)
                    await asyncio.to_thread(proxy.wait, 10)
            await wait_until(lambda: not any(e.in_flight.count for e in made.all), "idle engines")


async def ask_some(session: aiohttp.ClientSession, proxy: ProxyProcess, seeds: Iterable[int]) -> None:
    """Until kvproxy is gone, if it goes."""
    for seed in seeds:
        body = {"model": "tiny", "prompt": prose(40, seed), "max_tokens": 8}
        try:
            assert (await ask(session, proxy.url, "/v1/completions", body)).status == 200
        except aiohttp.ClientError:
            return


async def on_disk(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    """What is known by now is written, or already was."""
    begun = time.monotonic()
    for _ in range(1_000):
        status = await status_of(session, proxy)
        ages = [each["ranks"][0]["snapshot"]["age_s"] for each in status["instances"]]
        # The age is rounded to a tenth of a second.
        if None not in ages and max(ages) + 0.1 < time.monotonic() - begun:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it is not written")


async def test_a_second_kvproxy_on_the_same_directory_ends_at_once(
    at: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    async with engines(1, 1) as made:
        with process(made, at, tmp_path / "first.log") as first:
            await asyncio.to_thread(first.wait_status, "/ready")
            with process(made, at, tmp_path / "second.log") as second:
                assert await asyncio.to_thread(second.wait, 30) == 2
                assert f"another kvproxy uses it (process {first.pid})" in second.tail()
            os.kill(first.pid, signal.SIGKILL)
            await asyncio.to_thread(first.wait, 10)
        (at / "secret").chmod(0o644)
        with process(made, at, tmp_path / "third.log") as third:
            assert await asyncio.to_thread(third.wait, 30) == 2
            assert "secret is open to others than its owner" in third.tail()
