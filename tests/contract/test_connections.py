"""What a connection can tell: request ids come back, idle ones are closed, and who leaves is not served
on."""

import asyncio
import time
from typing import Any

import pytest

from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import Engine
from tests.contract.prompts import chat, text

LONG = 1900
KEEP_ALIVE_S = 5


@pytest.mark.parametrize(("path", "prefix"), [(COMPLETIONS, "cmpl-"), (CHAT, "chatcmpl-")])
async def test_a_request_id_is_kept(engine: Engine, path: str, prefix: str) -> None:
    body = (chat if path == CHAT else text)("named", 1)
    answer = await engine.served(body, path, X_Request_Id="req-42")
    assert answer.json["id"] == f"{prefix}req-42"
    assert answer.headers["X-Request-Id"] == "req-42"


async def test_a_body_may_name_the_request(engine: Engine) -> None:
    assert (await engine.served(text("named", 1, request_id="abc"))).json["id"] == "cmpl-abc"


async def test_two_requests_may_share_an_id(engine: Engine) -> None:
    answers = await asyncio.gather(
        *(engine.served(text(f"twin {n}", 20), X_Request_Id="the-same") for n in range(2))
    )
    assert [answer.json["id"] for answer in answers] == ["cmpl-the-same"] * 2
    assert answers[0].text != answers[1].text


@pytest.mark.parametrize("path", ["/health", "/nothing"])
async def test_every_answer_has_an_id(engine: Engine, path: str) -> None:
    _, headers, _ = await engine.send("GET", path)
    assert len(headers["X-Request-Id"]) == 32
    _, headers, _ = await engine.send("GET", path, headers={"X-Request-Id": "mine"})
    assert headers["X-Request-Id"] == "mine"


async def wait_running(engine: Engine, count: int) -> None:
    async def running() -> bool:
        return await engine.metric("vllm:num_requests_running") == count

    await wait_until(running, 5, f"{count} requests run")


async def generated_by(engine: Engine, leave: Any) -> float:
    """Tokens that were generated though the client leaves."""
    before = await engine.metric("vllm:generation_tokens_total")
    finished = await engine.metric("vllm:request_success_total")
    await leave()
    await engine.at_rest()
    assert await engine.metric("vllm:request_success_total") == finished, "it counts for no success"
    return await engine.metric("vllm:generation_tokens_total") - before


async def test_a_reader_that_leaves_is_not_served_on(engine: Engine) -> None:
    async def leave() -> None:
        async with engine.streaming(text("left while reading", LONG)):
            await wait_running(engine, 1)

    assert await generated_by(engine, leave) < LONG


async def test_a_client_that_leaves_while_it_waits_is_not_served_on(engine: Engine) -> None:
    async def leave() -> None:
        body = text("left while waiting", LONG)
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(ask(engine.session, engine.spec.url, COMPLETIONS, body))
            await wait_running(engine, 1)
            asked.cancel()

    assert await generated_by(engine, leave) < LONG


async def test_every_choice_of_one_who_leaves_ends(engine: Engine) -> None:
    async def leave() -> None:
        async with engine.streaming(text("left with choices", LONG, n=3, temperature=1)):
            await wait_running(engine, 3)

    assert await generated_by(engine, leave) < 3 * LONG


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One GET over a connection, which the engine leaves open."""
    writer.write(b"GET /version HTTP/1.1\r\nHost: engine\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in head.lower()
    await reader.readuntil(b"}")


async def test_an_idle_connection_is_closed_after_a_while(engine: Engine) -> None:
    async with asyncio.timeout(4 * KEEP_ALIVE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.spec.port)
        await get(reader, writer)
        await get(reader, writer)
        begun = time.monotonic()
        assert await reader.read() == b""
        idle_s = time.monotonic() - begun
        writer.close()
    assert KEEP_ALIVE_S - 0.5 < idle_s < 2 * KEEP_ALIVE_S
