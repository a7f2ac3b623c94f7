"""With an admin port clients find nothing of the fleet on theirs, and operators find all of it, up to the end
of a shutdown.
"""

import asyncio
import socket
from typing import Any

import aiohttp
import pytest

from proxy.cli.main import main
from proxy.config import Config, Security
from proxy.edge.app import shut_down
from proxy.errors import ConfigError
from tests.helpers.service import ADMIN_KEY, UNHURRIED, Service, ask, fleet, wait_until

SEPARATE = Security(admin_port=0)
OPERATORS = [
    ("/status", None),
    ("/metrics", None),
    ("/doctor", None),
    ("/explain", {"model": "tiny", "prompt": "hello"}),
    ("/instances/add", {"type": "prefill", "instance": "127.0.0.1:1"}),
    ("/instances/drain", {"instance": "127.0.0.1:1"}),
    ("/instances/remove", {"instance": "127.0.0.1:1"}),
]
GUARDED = [(path, body) for path, body in OPERATORS if path not in {"/status", "/metrics"}]


async def operator(service: Service, path: str, body: Any = None) -> Any:
    return await ask(service.session, service.admin_url, path, body, X_API_Key=ADMIN_KEY)


async def test_operators_paths_are_on_their_socket_alone() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, security=SEPARATE) as pair:
        service = pair.service
        assert service.admin_url != service.url
        for path, body in OPERATORS:
            assert (await service.admin(path, body) if body else await service.ask(path)).status == 404
            answer = await operator(service, path, body)
            known = b"is not known" in answer.body or b"nothing was added" in answer.body
            assert answer.status == 200 or (known and path.startswith("/instances"))
        for path in ("/health", "/ready"):
            assert (await service.ask(path)).status == 200
            assert (await operator(service, path)).status == 200
        assert (await service.complete("hello")).status == 200
        for path in ("/v1/models", "/v1/completions"):
            assert (await operator(service, path)).status == 404
        metrics = (await operator(service, "/metrics")).body
        assert b'kvproxy_requests_total{outcome="ok",route="completions"} 1.0' in metrics


async def test_without_an_admin_port_all_paths_are_on_one_socket() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        assert pair.service.admin_url == pair.service.url
        for path in ("/status", "/metrics", "/v1/models"):
            assert (await pair.service.ask(path)).status == 200


async def test_the_admin_key_is_needed_on_the_admin_socket_too() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, security=SEPARATE) as pair:
        for path, body in GUARDED:
            answer = await ask(pair.service.session, pair.service.admin_url, path, body)
            assert answer.status == 401


async def test_an_instance_drained_by_an_operator_is_drained_for_clients() -> None:
    async with fleet(prefill=2, decode=1, kv_events=False, security=SEPARATE) as pair:
        idle = pair.engines.prefill[0]
        assert (await operator(pair.service, "/instances/drain", {"instance": idle.address})).status == 200
        for engine in pair.engines.all:
            engine.seen.clear()
        for number in range(4):
            assert (await pair.service.complete(f"hello {number}")).status == 200
        assert not [s for s in idle.seen if s.path == "/v1/completions"]


async def test_the_end_of_a_shutdown_can_be_watched_and_then_both_sockets_are_closed() -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED, kv_events=False, security=SEPARATE) as pair:
        service = pair.service
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 60, "ignore_eos": True, "stream": True}
        async with service.session.post(f"{service.url}/v1/completions", json=body) as stream:
            await stream.content.readany()
            hurry = asyncio.Event()
            ending = asyncio.get_running_loop().create_task(shut_down(service.runner, 30, hurry), name="end")
            await wait_until(lambda: not service.runner.sites, "the end of the clients' socket")
            assert (await operator(service, "/ready")).status == 503
            assert (await operator(service, "/status")).json["ready"] is False
            assert (await stream.read()).endswith(b"data: [DONE]\n\n")
            await ending
        for url in (service.url, service.admin_url):
            with pytest.raises(aiohttp.ClientConnectionError):
                await service.session.get(f"{url}/health")


@pytest.mark.parametrize("taken_flag", ["--port", "--admin-port"])
def test_a_port_in_use_ends_the_start_with_its_flag(
    taken_flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free_flag = "--admin-port" if taken_flag == "--port" else "--port"
        ports = [taken_flag, str(taken.getsockname()[1]), free_flag, "0"]
        with pytest.raises(SystemExit) as ended:
            main(["serve", "-m", "tiny", "-p", "127.0.0.1:1", "-d", "127.0.0.1:2", *ports])
    assert ended.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kvproxy: ")]
    assert f"{taken_flag} {ports[1]}" in line
    assert line.endswith(": cannot listen there (Address already in use)")


@pytest.mark.parametrize(
    ("security", "words"),
    [
        ({"admin_host": "127.0.0.1"}, "--admin-port"),
        ({"admin_port": 70_000}, "--admin-port"),
        ({"admin_port": 8000}, "--admin-port"),
    ],
)
def test_hosts_and_ports_that_cannot_be_listened_on_are_refused(security: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(model="tiny", security=Security(**security))
    Config(model="tiny", security=Security(admin_host="127.0.0.2", admin_port=8000))
