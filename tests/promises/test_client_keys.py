"""Nothing under /v1 is served without one of the keys, and no key goes further than kvproxy."""

import json
import logging
import pathlib
from typing import Any

import pytest
from aiohttp import web

from proxy.config import Security
from proxy.edge import app
from proxy.edge.visit import visit_of
from tests.helpers.raw import send
from tests.helpers.service import ADMIN_KEY, ask, fleet

FILE = """\
# keys of the clients

alice  sk-alice-1
bob\tsk-bob
alice sk-alice-2
"""
BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 2}


@pytest.fixture
def key_file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "keys"
    file.write_text(FILE)
    file.chmod(0o600)
    return file


async def test_nothing_under_v1_is_served_without_a_key_and_all_with_one(key_file: pathlib.Path) -> None:
    security = Security(api_key_file=key_file)
    async with fleet(prefill=1, decode=1, kv_events=False, security=security) as pair:
        service = pair.service
        for engine in pair.engines.all:
            engine.seen.clear()
        given: list[dict[str, str]] = [{}, {"Authorization": "Bearer wrong"}, {"X_API_Key": ADMIN_KEY}]
        for path, body in (
            ("/v1/completions", BODY),
            ("/v1/chat/completions", {"model": "tiny", "messages": []}),
            ("/v1/models", None),
            ("/v1/nowhere", None),
            ("/v1/completions", b"nonsense"),
        ):
            for headers in given:
                answer = await service.ask(path, body, **headers)
                assert (answer.status, answer.json) == (401, {"error": "Unauthorized"})
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert answer.headers["X-Request-Id"]
        assert not [s for e in pair.engines.all for s in e.seen if s.path not in {"/v1/models", "/health"}]
        for path in ("/health", "/ready", "/metrics", "/status"):
            assert (await service.ask(path)).status == 200
        good = {"Authorization": "Bearer sk-bob"}
        assert (await service.ask("/v1/models", **good)).status == 200
        assert (await service.ask("/v1/completions", BODY, **good)).status == 200
        assert (await service.ask("/v1/nowhere", **good)).status == 404
        assert (await service.ask("/explain", BODY, **good)).status == 401  # an operator's
        odd = b"GET /%76%31/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await send(service, odd)).statuses == [401]
        twice = [("Authorization", "Bearer sk-bob"), ("Authorization", "Bearer wrong")]
        async with service.session.get(f"{service.url}/v1/models", headers=twice) as response:
            assert response.status == 401


@pytest.mark.parametrize("engine_key", [None, "engine-key"])
async def test_a_clients_key_never_reaches_an_engine_or_the_log(
    key_file: pathlib.Path, engine_key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    security = Security(api_key_file=key_file)
    settings: dict[str, Any] = {"security": security, "engine_api_key": engine_key}
    with caplog.at_level(logging.DEBUG):
        async with fleet(prefill=1, decode=1, kv_events=False, **settings) as pair:
            answer = await pair.service.ask("/v1/completions", BODY, Authorization="Bearer sk-alice-2")
            assert answer.status == 200
            await pair.service.ask("/v1/completions", BODY, Authorization="Bearer sk-wrong")
            await pair.service.settled()
            sent = [seen.headers.get("Authorization") for e in pair.engines.all for seen in e.seen]
            assert set(sent) == {f"Bearer {engine_key}" if engine_key else None}
            metrics = (await pair.service.ask("/metrics")).body.decode()
    lines = [r.getMessage() for r in caplog.records if r.name == "kvproxy.access"]
    assert [line for line in lines if " 200 " in line and " client=alice " in line]
    assert [line for line in lines if " 401 " in line and "client=" not in line]
    assert "sk-" not in caplog.text + metrics


async def test_without_keys_everybody_is_served_and_nobody_has_a_name() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        answer = await pair.service.ask("/v1/completions", BODY, Authorization="Bearer whatever")
        assert answer.status == 200


async def test_the_name_of_the_key_is_there_for_whoever_handles_the_request(
    key_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str | None] = []

    async def models(request: web.Request) -> web.Response:
        named.append(visit_of(request).client)
        return web.Response()

    monkeypatch.setattr(app, "CLIENTS", [web.get("/v1/models", models)])
    for security in (Security(api_key_file=key_file), Security()):
        async with fleet(prefill=1, decode=1, kv_events=False, security=security) as pair:
            answer = await pair.service.ask("/v1/models", Authorization="Bearer sk-alice-2")
            assert answer.status == 200
    assert named == ["alice", None]


async def test_a_streamed_request_with_a_key_is_whole(key_file: pathlib.Path) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, security=Security(api_key_file=key_file)) as pair:
        headers = {"Authorization": "Bearer sk-bob"}
        body = BODY | {"stream": True}
        answer = await pair.service.ask("/v1/completions", body, **headers)
        direct = await ask(pair.service.session, pair.engines.decode[0].url, "/v1/completions", body)
        assert answer.text == direct.text
        assert json.loads(json.dumps(answer.events[-1])) == "[DONE]"
