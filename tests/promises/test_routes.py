"""Paths are found as clients write them: with a slash at the end, by HEAD, and by vLLM's own names for
them."""

import asyncio
import importlib.metadata
from typing import Any

import pytest

from proxy.config import Security
from proxy.edge.app import CLIENTS, OPERATORS, PROBES
from proxy.simulation.live.faults import Fault
from tests.helpers.service import ADMIN_KEY, Pair, ask, fleet, wait_until

GETS = [
    route.path.replace("{model:.+}", "tiny")
    for route in CLIENTS + PROBES + OPERATORS
    if route.method == "GET"
]


async def of(pair: Pair, method: str, path: str, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = pair.service.url + path
    async with pair.service.session.request(method, url, headers=named, allow_redirects=False) as response:
        return response.status, response.headers, await response.read()


async def test_a_slash_at_the_end_makes_no_difference() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        service = pair.service
        chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "temperature": 0}
        text = {"prompt": "hello", "max_tokens": 3, "temperature": 0}
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", text)):
            plain, slashed = [await service.ask(each, body) for each in (path, path + "/")]
            assert (plain.status, slashed.status) == (200, 200)
            assert slashed.text == plain.text
        seen = {leg.path for engine in pair.engines.all for leg in engine.seen}
        assert not [path for path in seen if path.endswith("/")]  # engines would redirect
        for path in GETS:
            assert (await of(pair, "GET", path + "/", X_API_Key=ADMIN_KEY))[0] == 200
        drain = {"instance": pair.engines.decode[0].address}
        assert (await service.admin("/instances/drain/", drain)).status == 200
        assert (await service.ask("/explain/", text, X_API_Key=ADMIN_KEY)).status == 200
        for path in ("/", "//health", "/health//", "/v1/"):
            assert (await service.ask(path)).status == 404


async def test_no_spelling_gets_around_a_key(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice key-of-alice\n")
    keys.chmod(0o600)
    async with fleet(prefill=1, decode=1, kv_events=False, security=Security(api_key_file=keys)) as pair:
        for path in ("/v1/models", "/v1/models/"):
            assert (await of(pair, "GET", path))[0] == 401
            assert (await of(pair, "GET", path, Authorization="Bearer key-of-alice"))[0] == 200
        for path in ("/v1/completions/", "/v1/chat/completions/"):
            assert (await of(pair, "POST", path))[0] == 401
        for path in ("/instances/drain/", "/explain/"):
            assert (await pair.service.ask(path, {})).status == 401
        for path in (
            "/v1/load_lora_adapter",
            "/v1/load_lora_adapter/",
        ):  # which wants the admin key, and that alone
            assert (await pair.service.ask(path, {})).json["error"]["param"] == "X-API-Key"
            assert (await pair.service.admin(path, {})).status == 404  # the engines', which have no adapters
        for path in ("/health", "/ready", "/ping", "/load", "/version"):
            assert (await of(pair, "GET", path))[0] == 200


@pytest.mark.parametrize("path", GETS)
async def test_head_tells_of_what_get_would_answer(path: str) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        status, headers, body = await of(pair, "HEAD", path, X_API_Key=ADMIN_KEY)
        assert body == b""
        if path == "/doctor":  # it puts load on the engines
            assert status == 405
            return
        got, shown, _ = await of(pair, "GET", path, X_API_Key=ADMIN_KEY)
        assert (
            (status, headers.get("Content-Type"))
            == (got, shown.get("Content-Type"))
            == (200, headers.get("Content-Type"))
        )


async def test_head_is_no_way_to_generate() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        status, headers, body = await of(pair, "HEAD", "/v1/completions")
        assert (status, headers["Allow"], body) == (405, "POST", b"")


async def test_ping_load_and_version_are_answered_as_vllm_does() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        version = await pair.service.ask("/version")
        assert version.json == {"version": importlib.metadata.version("kvproxy")}
        assert [(await of(pair, method, "/ping"))[::2] for method in ("GET", "POST")] == [(200, b"")] * 2
        assert (await pair.service.ask("/ping", {"some": "body"})).status == 200


async def test_the_load_is_the_generating_requests_that_are_here() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, security=Security(admin_port=0)) as pair:
        service = pair.service

        async def told() -> list[Any]:
            return [
                (await ask(service.session, url, "/load")).json for url in (service.url, service.admin_url)
            ]

        assert await told() == [{"server_load": 0}] * 2
        pair.engines.decode[0].faults.add(Fault(kind="hang", path="/v1/c", times=2))
        tasks = [asyncio.get_running_loop().create_task(service.complete(f"hello {n}")) for n in range(2)]
        seen = pair.engines.decode[0].seen
        await wait_until(lambda: sum(leg.path == "/v1/completions" for leg in seen) == 2, "both legs")
        assert await told() == [{"server_load": 2}] * 2
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await service.settled()
        assert (await service.complete("hello")).status == 200
        assert (await service.complete("hello", n=0)).status == 400
        assert await told() == [{"server_load": 0}] * 2
