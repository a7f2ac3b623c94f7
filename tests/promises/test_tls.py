"""With TLS, traffic of clients, operators and engines is encrypted, and an engine without a right certificate
gets no request.
"""

import asyncio
import pathlib
import ssl
from typing import Any

import aiohttp
import pytest

from proxy.config import Admission, Config, Security, parse_instance
from proxy.fleet import Status
from proxy.phases import Role
from proxy.tls import server_context
from tests.helpers.certificates import Authority, Files, tls_front
from tests.helpers.service import ADMIN_KEY, engines, fleet, kvproxy, wait_until


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path)


def served_with(files: Files, **more: Any) -> Security:
    return Security(tls_cert=files.cert, tls_key=files.key, **more)


async def test_clients_and_operators_are_served_by_https_alone(authority: Authority) -> None:
    security = served_with(authority.certify("127.0.0.1"), admin_port=0)
    async with fleet(prefill=1, decode=1, kv_events=False, security=security) as pair:
        service = pair.service
        assert service.url.startswith("https://")
        assert service.admin_url.startswith("https://")
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4, "stream": True}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=authority.client())) as session:
            async with session.post(f"{service.url}/v1/completions", json=body) as response:
                assert response.status == 200
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            async with session.get(f"{service.admin_url}/metrics") as response:
                assert response.status == 200
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://{service.host}:{service.port}/health")
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"{service.url}/health")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_is_1_2_or_newer(authority: Authority, version: ssl.TLSVersion) -> None:
    files = authority.certify("127.0.0.1")
    assert server_context(*files).minimum_version == ssl.TLSVersion.TLSv1_2
    async with fleet(prefill=1, decode=1, kv_events=False, security=served_with(files)) as pair:
        context = authority.client()
        context.minimum_version = context.maximum_version = version
        reader, writer = await asyncio.open_connection(pair.service.host, pair.service.port, ssl=context)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()


async def test_engines_are_reached_by_https_and_the_rest_stays_as_it_is(authority: Authority) -> None:
    files = authority.certify("127.0.0.1")
    async with (
        engines(prefill=1, decode=1) as made,
        tls_front(made.prefill[0].address, files) as prefill,
        tls_front(made.decode[0].address, files) as decode,
    ):
        config = Config(
            model="tiny",
            instances=(
                parse_instance(f"https://{prefill.address}", Role.PREFILL),
                parse_instance(f"https://{decode.address}", Role.DECODE),
            ),
            security=Security(engine_ca=authority.file),
            policy="cache_affinity",
        )
        async with kvproxy(config) as service:
            answer = await service.chat("hello there", stream=True)
            assert answer.status == 200
            assert answer.events[-1] == "[DONE]"
            status = (await service.ask("/status")).json
            assert [i["instance"] for i in status["instances"]] == [prefill.address, decode.address]
            assert {i["index"] for i in status["instances"]} == {"exact"}
            await service.settled()
            assert prefill.accepted
            assert decode.accepted


@pytest.mark.parametrize(
    ("names", "days", "trusted", "words"),
    [
        (["127.0.0.1"], 1, False, "certificate"),
        (["127.0.0.1"], -1, True, "expired"),
        (["127.0.0.2", "gpu1"], 1, True, "IP address mismatch"),
    ],
)
async def test_an_engine_that_cannot_prove_who_it_is_gets_no_request(
    authority: Authority, tmp_path: pathlib.Path, names: list[str], days: int, trusted: bool, words: str
) -> None:
    async with (
        engines(prefill=1, decode=1) as made,
        tls_front(made.prefill[0].address, authority.certify(*names, days=days)) as front,
    ):
        other = Authority(tmp_path, "another")
        config = Config(
            model="tiny",
            instances=(
                parse_instance(f"https://{front.address}", Role.PREFILL),
                parse_instance(made.decode[0].address, Role.DECODE),
            ),
            security=Security(engine_ca=authority.file if trusted else other.file),
            admission=Admission(queue_timeout_s=1.0),
            kv_events=False,
        )
        async with kvproxy(config, ready=False) as service:
            instance = service.fleet.get(front.address)
            assert instance is not None
            await wait_until(lambda: instance.status is Status.DOWN, "a refused certificate")
            assert words in (instance.why_down or "")
            assert (await service.complete("hello")).status == 503
            assert not made.prefill[0].seen


async def test_an_engine_is_added_by_https_and_later_without(authority: Authority) -> None:
    security = Security(engine_ca=authority.file)
    async with (
        fleet(prefill=1, decode=1, kv_events=False, security=security, admin_api_key=ADMIN_KEY) as pair,
        engines(prefill=1, decode=0) as more,
        tls_front(more.prefill[0].address, authority.certify("127.0.0.1")) as front,
    ):
        plain = {"type": "prefill", "instance": front.address}
        refused = await pair.service.admin("/instances/add", plain)
        assert refused.status == 400  # it speaks TLS only
        added = await pair.service.admin("/instances/add", plain | {"instance": f"https://{front.address}"})
        assert added.status == 200
        assert added.json["instance"] == front.address
        again = await pair.service.admin("/instances/add", plain)
        assert again.status == 409
        assert (await pair.service.complete("hello")).status == 200
        gone = await pair.service.admin("/instances/remove", {"instance": front.address, "force": True})
        assert gone.status == 200
