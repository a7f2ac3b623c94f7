"""Instances come and go, engines with another model are refused, and a stop lets running answers end."""

import asyncio
import json
import os
import pathlib
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from proxy.config import Admission, Health, parse_instance
from proxy.edge.app_keys import SERVICE
from proxy.errors import ConfigError
from proxy.fleet import Status
from proxy.phases import Role
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.engine.latency import PROFILES
from proxy.simulation.live.faults import Fault
from proxy.tasks import TaskOwner
from proxy.tuning import Tuning
from tests.helpers.service import UNHURRIED, Engines, ask, engines, fleet, kvproxy, wait_until

# -- adding and removing -------------------------------------------------------------------------------------


async def test_instances_are_added_and_removed_while_serving() -> None:
    async with fleet(prefill=1, decode=1) as pair, StandIn() as more:
        added = await pair.service.admin("/instances/add", {"type": "prefill", "instance": more.address})
        assert (added.status, added.json["instance"]) == (200, more.address)
        again = await pair.service.admin("/instances/add", {"type": "prefill", "instance": more.address})
        assert again.status == 409
        status = (await pair.service.ask("/status")).json
        assert status["prefill_nodes"] == [pair.engines.prefill[0].address, more.address]
        first = {"type": "prefill", "instance": pair.engines.prefill[0].address}
        assert (await pair.service.admin("/instances/remove", first)).status == 200
        await wait_until(lambda: len(pair.service.fleet) == 2, "removal")
        assert (await pair.service.complete("hello")).status == 200
        assert any(seen.path == "/v1/completions" for seen in more.seen)
        assert (await pair.service.admin("/instances/remove", first)).status == 404
        gone = pair.engines.prefill[0].address
        assert await pair.service.metric("kvproxy_instance_up", instance=gone) == 0
        assert gone not in (await pair.service.ask("/status")).body.decode()


@pytest.mark.parametrize("force", [False, True])
async def test_a_removed_instance_finishes_its_legs(force: bool) -> None:
    async with fleet(prefill=1, decode=1) as pair:
        engine = pair.engines.decode[0]
        engine.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        await wait_until(lambda: engine.asked["/v1/completions"] == 1, "a running leg")
        removed = await pair.service.admin("/instances/remove", {"instance": engine.address, "force": force})
        assert (removed.status, removed.json["running_legs"]) == (200, 1)
        assert (pair.service.fleet.get(engine.address) is None) is force
        engine.faults.release()
        assert (await running).status == 200
        await wait_until(lambda: pair.service.fleet.get(engine.address) is None, "removal")


async def test_a_draining_instance_gets_no_new_legs_until_that_is_undone() -> None:
    async with fleet(decision_headers=True) as pair:
        drained, other = (engine.address for engine in pair.engines.prefill)
        answer = await pair.service.admin("/instances/drain", {"instance": drained, "type": "prefill"})
        assert (answer.status, answer.json["running_legs"]) == (200, 0)
        for n in range(6):
            assert (await pair.service.complete(f"p{n}")).headers["X-Kvproxy-Prefill"] == other
        shown = (await pair.service.ask("/status")).json["instances"][0]
        assert (shown["instance"], shown["state"], shown["up"]) == (drained, "draining", False)
        explained = await pair.service.explain({"prompt": "x"})
        assert explained["prefill"]["candidates"][0]["why"] == "draining"
        undone = await pair.service.admin("/instances/drain", {"instance": drained, "undo": True})
        assert undone.status == 200
        instance = pair.service.fleet.get(drained)
        assert instance is not None
        assert instance.why_unusable() is None
        assert (await pair.service.admin("/instances/drain", {"instance": "h:1"})).status == 404


async def test_a_removal_cannot_be_undone_by_undoing_a_drain() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        engine = pair.engines.decode[0]
        engine.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        await wait_until(lambda: engine.asked["/v1/completions"] == 1, "a running leg")
        await pair.service.admin("/instances/remove", {"instance": engine.address})
        body = {"instance": engine.address, "undo": True}
        assert (await pair.service.admin("/instances/drain", body)).status == 409
        engine.faults.release()
        assert (await running).status == 200


async def test_a_prefill_instance_stays_while_its_blocks_wait_to_be_fetched() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        prefill, decode = pair.engines.prefill[0], pair.engines.decode[0]
        decode.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        await wait_until(lambda: decode.asked["/v1/completions"] == 1, "the decode leg")
        assert pair.service.fleet.holds[prefill.address] == 1
        await pair.service.admin("/instances/remove", {"instance": prefill.address})
        assert pair.service.fleet.get(prefill.address) is not None
        decode.faults.release()
        assert (await running).status == 200
        await wait_until(lambda: pair.service.fleet.get(prefill.address) is None, "removal")
        await wait_until(lambda: pair.engines.holds == 0, "the end of all holds")


async def test_an_instance_added_again_outlives_the_old_ones_legs() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        decode = pair.engines.decode[0]
        decode.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        old = pair.service.fleet.get(decode.address)
        assert old is not None
        await wait_until(lambda: any(s.path == "/v1/completions" for s in decode.seen), "a decode leg")
        body = {"instance": decode.address, "type": "decode"}
        await pair.service.admin("/instances/remove", body)
        await pair.service.admin("/instances/remove", body | {"force": True})
        assert (await pair.service.admin("/instances/add", body)).status == 200
        decode.faults.release()
        assert (await running).status == 200
        await wait_until(lambda: not old.running_legs(), "the end of the old leg")
        assert (await pair.service.complete("hello")).status == 200


async def test_no_request_fails_while_an_instance_is_removed_and_added_under_load() -> None:
    async with fleet() as pair:
        statuses: list[int] = []
        stop = asyncio.Event()

        async def client(number: int) -> None:
            while not stop.is_set():
                statuses.append((await pair.service.complete(f"prompt {number}", stream=True)).status)

        clients = [asyncio.get_running_loop().create_task(client(n)) for n in range(8)]
        for engine, role in ((pair.engines.prefill[0], "prefill"), (pair.engines.decode[0], "decode")):
            for _ in range(3):
                body = {"type": role, "instance": engine.address}
                assert (await pair.service.admin("/instances/remove", body)).status == 200
                await wait_until(lambda a=engine.address: pair.service.fleet.get(a) is None, "removal")  # type: ignore[misc]
                assert (await pair.service.admin("/instances/add", body)).status == 200
        stop.set()
        await asyncio.gather(*clients)
        assert len(statuses) > 20
        assert set(statuses) == {200}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"type": "prefill"}, "instance"),
        ({"type": "other", "instance": "h:1"}, "other"),
        ({"type": "prefill", "instance": "h"}, "HOST:PORT"),
        ({"type": "prefill", "instance": "user@h:1"}, "HOST:PORT"),
        ({"type": "prefill", "instance": "h:1", "x": 1}, "x"),
        ({"type": "prefill", "instance": "127.0.0.1:1"}, "connection refused"),
        ([], "object"),
    ],
)
async def test_an_instance_that_cannot_be_added_is_refused_with_the_reason(body: Any, words: str) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        answer = await pair.service.admin("/instances/add", body)
        assert answer.status == 400
        assert words in answer.json["error"]["message"]
        assert len(pair.service.fleet) == 2


async def test_an_engine_too_busy_to_tell_its_event_sources_keeps_its_index() -> None:
    often = Tuning(look_every_s=0.0)
    health = Health(interval_s=0.05)
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED, health=health, tuning=often) as pair:
        prompt = list(range(100, 300))
        await pair.service.complete(prompt)
        engine = pair.engines.prefill[0]
        engine.faults.add(Fault(kind="status", path="/kv_event_sources", status=503, times=3))
        await wait_until(lambda: not engine.faults.active(), "three failed questions")
        explained = await pair.service.explain({"prompt": [*prompt, 1]})
        (candidate,) = explained["prefill"]["candidates"]
        assert (candidate["index"], candidate["cached_tokens"]) == ("exact", 192)


async def test_the_release_of_each_engine_is_told() -> None:
    async with StandIn(StandInConfig(version="0.33.0")) as prefill, StandIn() as decode:
        decode.faults.add(Fault(kind="status", path="/version", status=404))
        async with kvproxy(Engines([prefill], [decode], []).config()) as service:
            instances = list(service.fleet)
            await wait_until(lambda: instances[0].version is not None, "its version")
            told = (await service.ask("/status")).json["instances"]
            assert [instance["version"] for instance in told] == ["0.33.0", None]


async def test_while_an_instance_is_added_nobody_adds_it_by_another_scheme() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair, StandIn() as new:
        new.faults.add(Fault(kind="hang", path="/v1/models", times=1))
        plain = {"type": "prefill", "instance": new.address}
        adding = asyncio.get_running_loop().create_task(pair.service.admin("/instances/add", plain))
        await wait_until(
            lambda: new.address in pair.service.app[SERVICE].membership._adding, "that it is being added"
        )
        other = await pair.service.admin("/instances/add", plain | {"instance": f"https://{new.address}"})
        assert other.status == 409
        await wait_until(lambda: new.asked["/v1/models"] > 0, "the question what it serves")
        new.faults.release()
        assert (await adding).status == 200
        instance = pair.service.fleet.get(new.address)
        assert instance is not None
        assert (instance.spec.scheme, instance.status) == ("http", Status.UP)
        drained = await pair.service.admin("/instances/drain", {"instance": pair.engines.prefill[0].address})
        assert drained.status == 200
        assert (await pair.service.complete("hello")).status == 200
        assert (await pair.service.admin("/instances/add", plain)).status == 409


async def test_an_engine_of_another_model_cannot_be_added() -> None:
    async with (
        fleet(prefill=1, decode=1, kv_events=False) as pair,
        StandIn(StandInConfig(model="other")) as other,
    ):
        answer = await pair.service.admin("/instances/add", {"type": "decode", "instance": other.address})
        assert answer.status == 400
        assert "'other'" in answer.json["error"]["message"]
        assert "'tiny'" in answer.json["error"]["message"]


async def test_the_admin_key_is_needed() -> None:
    body = {"type": "prefill", "instance": "127.0.0.1:1"}
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        for path in ("/instances/add", "/instances/remove"):
            assert (await pair.service.ask(path, body)).status == 401
            assert (await pair.service.ask(path, body, X_API_Key="wrong")).status == 403
    async with fleet(prefill=1, decode=1, kv_events=False, admin_api_key=None) as pair:
        assert (await pair.service.ask("/instances/add", body, X_API_Key="x")).status == 503


# -- the start -----------------------------------------------------------------------------------------------


async def test_the_port_is_open_while_engines_are_awaited() -> None:
    async with engines(prefill=1, decode=1) as made:
        await made.prefill[0].refuse()
        config = made.config(admission=Admission(queue_timeout_s=0.2))
        async with kvproxy(config, ready=False) as service:
            assert (await service.ask("/health")).status == 200
            assert (await service.ask("/ready")).status == 503
            assert (await service.complete("hello")).status == 503
            await made.prefill[0].accept()
            await wait_until(lambda: service.fleet.ready, "readiness")
            assert (await service.ask("/ready")).status == 200
            assert (await service.complete("hello")).status == 200


async def test_an_engine_that_comes_up_with_another_model_is_refused_until_it_serves_ours() -> None:
    async with engines(prefill=1, decode=1) as made:
        address = made.prefill[0].address
        await made.prefill[0].stop()
        async with kvproxy(made.config(), ready=False) as service:
            instance = service.fleet.get(address)
            assert instance is not None
            await wait_until(lambda: instance.status is Status.DOWN, "down")
            async with StandIn(StandInConfig(model="other", port=int(address.rpartition(":")[2]))):
                await wait_until(lambda: instance.status is Status.REFUSED, "refusal")
                assert not service.app[SERVICE].watch.fatal.done()
                shown = (await service.ask("/status")).json["instances"][0]
                assert (shown["up"], shown["state"]) == (False, "refused")
                assert "'other'" in shown["why"]
            async with StandIn(StandInConfig(port=int(address.rpartition(":")[2]))):
                await wait_until(lambda: instance.status is Status.UP, "up")
                assert (await service.complete("hello")).status == 200


async def test_a_reachable_engine_with_another_model_ends_the_start() -> None:
    async with engines(prefill=1, decode=1) as made, StandIn(StandInConfig(model="other")) as other:
        config = made.config()
        wrong = made.config(instances=(*config.instances[:1], _as(config.instances[1], other.address)))
        async with kvproxy(wrong, ready=False) as service:
            async with asyncio.timeout(10):
                error = await service.app[SERVICE].watch.fatal
            assert isinstance(error, ConfigError)
            assert "'other'" in str(error)
            assert "'tiny'" in str(error)
            assert other.address in str(error)


def _as(spec: Any, address: str) -> Any:
    return type(spec)(address, spec.role)


# -- the process ---------------------------------------------------------------------------------------------


class Process:
    """`kvproxy serve` as its user runs it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""

    async def says(self, pattern: str) -> re.Match[str]:
        """Read on to the first line in which that is found."""
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            async for line in self.process.stderr:
                self.lines.append(line.decode())
                if found := re.search(pattern, line.decode()):
                    return found
        raise AssertionError(f"it ended and did not say {pattern!r}: {self.lines}")

    async def listening(self) -> None:
        self.url = (await self.says(r"listening on (http://\S+),"))[1]

    async def ready(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(20):
            while (await ask(session, self.url, "/ready")).status != 200:  # noqa: ASYNC110  # asked over HTTP
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        assert self.process.stderr is not None
        self.lines.append((await self.process.stderr.read()).decode())
        return await self.process.wait()


@pytest.fixture
async def started() -> AsyncIterator[Any]:
    processes: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "proxy",
            "serve",
            *arguments,
            stderr=asyncio.subprocess.PIPE,
            env=dict(os.environ),
        )
        processes.append(process)
        return Process(process)

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_running_stream_end_and_exits_with_0(started: Any, number: int) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        prefill, decode = pair.engines.prefill[0], pair.engines.decode[0]
        decode.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        process = await started("-m", "tiny", "-p", prefill.address, "-d", decode.address, "--port", "0")
        await process.listening()
        await process.ready(pair.service.session)
        body = {"prompt": "hello", "max_tokens": 20, "stream": True}
        asking = ask(pair.service.session, process.url, "/v1/completions", body)
        running = asyncio.get_running_loop().create_task(asking)
        await wait_until(lambda: decode.asked["/v1/completions"] == 1, "the decode leg")
        process.process.send_signal(number)
        await process.says("stopping:")
        decode.faults.release()
        assert (await running).body.endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(30):
            assert await process.ended() == 0


@pytest.mark.parametrize("signals", [1, 2])
async def test_every_request_that_was_answered_before_the_end_has_a_line(started: Any, signals: int) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        prefill, decode = pair.engines.prefill[0], pair.engines.decode[0]
        process = await started("-m", "tiny", "-p", prefill.address, "-d", decode.address, "--port", "0")
        await process.listening()
        await process.ready(pair.service.session)
        asked = [
            ask(pair.service.session, process.url, "/v1/completions", {"prompt": f"{n}", "max_tokens": 1})
            for n in range(60)
        ]
        answers = asyncio.gather(*asked, return_exceptions=True)
        await process.says("POST /v1/completions 200 ")
        for _ in range(signals):
            process.process.send_signal(signal.SIGTERM)
        statuses = Counter(getattr(answer, "status", None) for answer in await answers)
        assert await process.ended() == 0
        lines = "".join(process.lines).splitlines()
        assert statuses[200] == len([line for line in lines if "POST /v1/completions 200 " in line]) > 0
        assert re.fullmatch(r"\S+ \S+ INFO stopped after \d+\.\d s", lines[-1])
        times = [line[:23] for line in lines]
        assert times == sorted(times)


async def test_a_hangup_ends_nothing_and_no_core_is_left(started: Any) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        prefill, decode = pair.engines.prefill[0], pair.engines.decode[0]
        process = await started("-m", "tiny", "-p", prefill.address, "-d", decode.address, "--port", "0")
        await process.listening()
        process.process.send_signal(signal.SIGHUP)
        await process.ready(pair.service.session)
        body = {"prompt": "hello", "max_tokens": 2}
        assert (await ask(pair.service.session, process.url, "/v1/completions", body)).status == 200
        assert resource.prlimit(process.process.pid, resource.RLIMIT_CORE) == (0, 0)
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
    assert "SIGHUP is ignored" in "".join(process.lines)


@pytest.mark.parametrize(("timeout_s", "signals"), [("1", 1), ("0", 1), ("60", 2)])
async def test_a_request_that_runs_too_long_is_cut_with_an_error(
    started: Any, timeout_s: str, signals: int
) -> None:
    async with fleet(
        prefill=1, decode=1, kv_events=False, stand_in={"profile": PROFILES["dynamo-replay"]}
    ) as pair:
        prefill, decode = pair.engines.prefill[0], pair.engines.decode[0]
        process = await started(
            "-m", "tiny", "-p", prefill.address, "-d", decode.address,
            "--port", "0", "--shutdown-timeout", timeout_s,
        )  # fmt: skip
        await process.listening()
        await process.ready(pair.service.session)
        body = {"prompt": "hello", "max_tokens": 5000, "ignore_eos": True, "stream": True}
        data = json.dumps(body).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
            b"%d\r\n\r\n"
        )
        async with asyncio.timeout(20):
            # By hand: aiohttp's client throws away what it had not read yet when a connection breaks.
            reader, writer = await asyncio.open_connection("127.0.0.1", int(process.url.rpartition(":")[2]))
            writer.write(head % len(data) + data)
            got = await reader.readuntil(b"data: ")
            unstreamed = asyncio.get_running_loop().create_task(
                ask(pair.service.session, process.url, "/v1/completions", body | {"stream": False})
            )
            await wait_until(
                lambda: len([s for s in decode.seen if s.path == "/v1/completions"]) == 2, "both"
            )
            process.process.send_signal(signal.SIGTERM)
            for _ in range(signals - 1):
                await process.says("stopping:")  # two signals sent at once may arrive as one
                process.process.send_signal(signal.SIGTERM)
            got += await reader.read()
            writer.close()
            last_event = got.rpartition(b"data: ")[2]
            assert last_event.endswith(b"\n\n\r\n")  # and no chunk that ends the body
            error = json.loads(last_event)["error"]
            assert (error["message"], error["code"]) == ("kvproxy is shutting down", 503)
            refused = await unstreamed
            assert (refused.status, refused.json["error"]["message"]) == (503, "kvproxy is shutting down")
            assert refused.headers["Connection"] == "close"
            assert await process.ended() == 0
    lines = [line for line in "".join(process.lines).splitlines() if "POST /v1/completions" in line]
    assert len(lines) == 2
    assert sorted(re.search(r"completions (\d+) .* outcome=(\w+)", line).groups() for line in lines) == [  # type: ignore[union-attr]
        ("200", "cut"),
        ("503", "unavailable"),
    ]


async def _draining(process: Process, session: aiohttp.ClientSession) -> Any:
    """The answer of `/ready` once it fails."""
    async with asyncio.timeout(20):
        while (answer := await ask(session, process.url, "/ready")).status == 200:  # noqa: ASYNC110  # asked over HTTP
            await asyncio.sleep(0.02)
    return answer


async def test_while_kvproxy_drains_ready_fails_and_all_is_still_served(started: Any) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        session = pair.service.session
        prefill, decode = pair.engines.prefill[0], pair.engines.decode[0]
        process = await started(
            "-m", "tiny", "-p", prefill.address, "-d", decode.address, "--port", "0", "--drain-delay", "4"
        )  # fmt: skip
        await process.listening()
        await process.ready(session)
        assert "Connection" not in (await ask(session, process.url, "/health")).headers
        begun_at = asyncio.get_running_loop().time()
        process.process.send_signal(signal.SIGTERM)
        failed = await _draining(process, session)
        assert failed.status == 503
        assert "draining" in failed.json["error"]["message"]
        assert (await ask(session, process.url, "/health")).status == 200
        assert "draining" in (await ask(session, process.url, "/status")).json["not_ready_because"]
        decode.faults.add(Fault(kind="hang", path="/v1/c", times=1))
        body = {"prompt": "hello", "max_tokens": 20, "stream": True}
        asking = ask(session, process.url, "/v1/completions", body)
        running = asyncio.get_running_loop().create_task(asking)
        await process.says("stopping:")  # the port closes
        decode.faults.release()
        answer = await running
        assert answer.status == 200
        assert answer.headers["Connection"] == "close"
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert await process.ended() == 0
        assert asyncio.get_running_loop().time() - begun_at >= 4
    said = "".join(process.lines)
    assert "for 4 s all is still served" in said
    assert said.index("draining:") < said.index("stopping:")
    assert re.search(r" stopped after \d+\.\d s$", said.splitlines()[-1])


async def test_a_second_signal_ends_the_draining_too(started: Any) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        process = await started(
            "-m", "tiny", "-p", pair.engines.prefill[0].address, "-d", pair.engines.decode[0].address,
            "--port", "0", "--drain-delay", "600",
        )  # fmt: skip
        await process.listening()
        await process.ready(pair.service.session)
        process.process.send_signal(signal.SIGTERM)
        await _draining(process, pair.service.session)
        process.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.ended() == 0


async def test_a_request_that_waits_when_the_start_fails_gets_an_error(started: Any) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        process = await started(
            "-m", "tiny", "-p", "127.0.0.1:1", "-d", pair.engines.decode[0].address, "--port", "0",
            "--startup-timeout", "5"
        )  # fmt: skip
        await process.listening()
        async with asyncio.timeout(20):
            answer = await ask(pair.service.session, process.url, "/v1/completions", {"prompt": "hello"})
            assert (answer.status, answer.headers["Connection"]) == (503, "close")
            assert answer.json["error"]["message"] == "kvproxy is shutting down"
            assert await process.ended() == 1


async def test_not_ready_in_time_ends_with_code_1_naming_the_engine(started: Any) -> None:
    process = await started(
        "-m", "tiny", "-p", "127.0.0.1:1", "-d", "127.0.0.1:2", "--port", "0", "--startup-timeout", "0.5"
    )
    async with asyncio.timeout(20):
        assert await process.ended() == 1
    said = "".join(process.lines)
    assert "127.0.0.1:1" in said
    assert "connection refused" in said
    assert "Traceback" not in said


async def test_another_model_ends_with_code_2_naming_both(started: Any) -> None:
    async with StandIn(StandInConfig(model="other")) as engine:
        process = await started("-m", "tiny", "--both", engine.address, "--port", "0")
        async with asyncio.timeout(20):
            assert await process.ended() == 2
        said = "".join(process.lines)
        assert "'other'" in said
        assert "'tiny'" in said
        assert "Traceback" not in said


async def test_an_instance_added_before_a_restart_is_among_those_waited_for(
    started: Any, tmp_path: pathlib.Path
) -> None:
    kept = {"format": "kvproxy instances 1", "model": "tiny", "drained": [], "removed": []}
    added = [{"instance": "127.0.0.1:3", "type": "decode", "drained": False}]
    state = tmp_path / "state"
    state.mkdir(0o700)
    (state / "instances.json").write_text(json.dumps(kept | {"added": added}))
    process = await started(
        "-m", "tiny", "-p", "127.0.0.1:1", "-d", "127.0.0.1:2", "--port", "0", "--state-dir", str(state)
    )
    await process.listening()
    assert process.lines[-1].endswith(", waiting for 3 engines\n")


async def test_a_misspelt_environment_name_is_told_of_once(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVPROXY_STARTUP_TIMEOT", "600")
    monkeypatch.setenv("KVPROXY_SERVICE_HOST", "10.0.0.1")
    process = await started(
        "-m", "tiny", "-p", "127.0.0.1:9", "-d", "127.0.0.1:19", "--port", "0", "--startup-timeout", "0.1"
    )
    assert await process.ended() == 1
    told = [line for line in "".join(process.lines).splitlines() if "KVPROXY_" in line]
    assert len(told) == 1
    assert "KVPROXY_STARTUP_TIMEOT in the environment is no setting" in told[0]
    assert "is KVPROXY_STARTUP_TIMEOUT meant?" in told[0]


async def test_a_port_in_use_ends_with_code_2_naming_the_flag(started: Any) -> None:
    async with StandIn() as engine:
        process = await started("-m", "tiny", "--both", engine.address, "--port", str(engine.port))
        async with asyncio.timeout(20):
            assert await process.ended() == 2
        assert "--port" in "".join(process.lines)


async def test_an_add_is_answered_although_the_instance_is_removed_before_its_first_check() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair, StandIn(StandInConfig()) as spare:
        members = pair.service.app[SERVICE].membership
        tasks = TaskOwner("test")
        spec = parse_instance(spare.address, Role.DECODE)
        adding = tasks.create(members.add(spec), name="add")
        async with asyncio.timeout(10):
            while pair.service.fleet.get(spare.address) is None:  # noqa: ASYNC110  # not one turn later
                await asyncio.sleep(0)
            await members.remove(spare.address, force=True)
            assert (await adding).address == spare.address
