"""Bad input gets one clear error in one shape, at once, and never reaches an engine."""

import asyncio
import contextlib
import gzip
import json
from typing import Any

import pytest

from tests.helpers.service import ADMIN_KEY, Pair, fleet

JSON = {"Content_Type": "application/json"}


def is_envelope(answer: Any, status: int) -> bool:
    error = json.loads(answer.body)["error"]
    return (
        answer.status == status
        and error["code"] == status
        and set(error) == {"message", "type", "param", "code"}
        and bool(error["message"])
        and "Traceback" not in error["message"]
        and bool(answer.headers["X-Request-Id"])
    )


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", JSON, 400),
        (b"{", JSON, 400),
        (b"[]", JSON, 400),
        (b'{"prompt": "x", "max_tokens": 1', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, JSON, 400),
        (b"\xff\xfe\x00", JSON, 400),
        (b'{"prompt": "x", "n": 0}', JSON, 400),
        (b'{"prompt": "x", "model": "other"}', JSON, 404),
        (b'{"prompt": "x"}', {"Content_Type": "text/plain"}, 415),
        (b'{"prompt": "x"}', {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        (b'{"prompt": "x"}', {"Content_Type": ""}, 415),
        (gzip.compress(b'{"prompt": "x"}'), JSON | {"Content_Encoding": "gzip"}, 415),
        (b'{"prompt": "' + b"x" * (1 << 20) + b'"}', JSON, 413),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/explain"])
async def test_bad_bodies(path: str, body: bytes, headers: dict[str, str], status: int) -> None:
    async with fleet(prefill=1, decode=1, max_body_mb=1, kv_events=False) as pair:
        answer = await pair.service.ask(path, body, X_API_Key=ADMIN_KEY, **headers)
        assert is_envelope(answer, status)
        assert not [s for e in pair.engines.all for s in e.seen]
        assert (await pair.service.complete("still serving")).status == 200


async def test_a_body_of_just_the_limit_is_taken_and_parameters_of_the_type_are_allowed() -> None:
    async with fleet(prefill=1, decode=1, max_body_mb=1, kv_events=False) as pair:
        frame = len(b'{"prompt": [1], "user": ""}')
        body = b'{"prompt": [1], "user": "' + b"x" * ((1 << 20) - frame) + b'"}'
        assert len(body) == 1 << 20
        headers = {"Content_Type": "application/json; charset=utf-8"}
        assert (await pair.service.ask("/v1/completions", body, **headers)).status == 200
        assert is_envelope(await pair.service.ask("/v1/completions", body + b" ", **headers), 413)


async def test_a_body_too_large_in_chunks_is_refused_too() -> None:
    async with fleet(prefill=1, decode=1, max_body_mb=1, kv_events=False) as pair:

        async def endless() -> Any:
            for _ in range(40):
                yield b"x" * (1 << 16)

        async with pair.service.session.post(
            f"{pair.service.url}/v1/completions", data=endless(), headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/status", 405),
        ("POST", "/health", 405),
    ],
)
async def test_wrong_paths_and_methods_get_the_envelope(method: str, path: str, status: int) -> None:
    async with (
        fleet(prefill=1, decode=1, kv_events=False) as pair,
        pair.service.session.request(method, pair.service.url + path) as response,
    ):
        error = (await response.json())["error"]
        assert response.status == status == error["code"]
        assert ("Allow" in response.headers) is (status == 405)
        only = "" if status == 404 else f", only {response.headers['Allow'].replace(',', ' and ')}"
        assert error["message"] == f"kvproxy does not serve {method} {path}{only}; see /openapi.json"


async def test_request_ids_are_echoed_or_made() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        given = await pair.service.ask("/health", X_Request_Id="abc-1")
        assert given.headers["X-Request-Id"] == "abc-1"
        for odd in ("", "x" * 300, "caf\u00e9"):
            made = (await pair.service.ask("/health", X_Request_Id=odd)).headers["X-Request-Id"]
            assert len(made) == 32


async def raw(pair: Pair, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(pair.service.host, pair.service.port)
    writer.write(data)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: "
            b"chunked\r\n\r\n0\r\n\r\n"
        ),
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nA\x00B: 1\r\n\r\n",
    ],
)
async def test_broken_http_is_refused(data: bytes) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        assert b" 400 " in (await raw(pair, data)).split(b"\r\n")[0]
        assert (await pair.service.ask("/health")).status == 200


async def test_no_header_can_be_injected_into_a_leg() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        body = b'{"prompt": "x", "max_tokens": 1, "model": "tiny\\r\\nX-Evil: 1"}'
        answer = await pair.service.ask("/v1/completions", body)
        assert answer.status == 404
        assert "X-Evil" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/completions", "/nowhere"])
async def test_an_expectation_that_cannot_be_met_gets_the_envelope(path: str) -> None:
    async with (
        fleet(prefill=1, decode=1, kv_events=False) as pair,
        pair.service.session.post(
            pair.service.url + path, data=b"{}", headers={"Expect": "200-ok"}
        ) as response,
    ):
        error = (await response.json())["error"]
        assert response.status == 417 == error["code"]
        assert response.headers["X-Request-Id"]


async def test_a_request_line_without_a_version_gets_no_answer_in_http_0_9() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        reader, writer = await asyncio.open_connection(pair.service.host, pair.service.port)
        writer.write(b"GET /health\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        assert (await pair.service.ask("/health")).status == 200


async def test_a_long_name_of_a_model_is_not_repeated_whole() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        for length in (3_000, 300_000):
            answer = await pair.service.ask("/v1/completions", {"model": "m" * length, "prompt": "x"})
            assert answer.status in {400, 404}
            assert 0 < len(answer.json["error"]["message"]) < 1000
