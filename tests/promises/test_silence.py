"""Whatever goes wrong, log and metrics never show what a client asked, nor its key, nor where its KV lies."""

import asyncio
import contextlib
import json
import pathlib
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from proxy.simulation.live.faults import Fault
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from tests.helpers.echoing import WAYS, EchoingEngine, echoing_engine
from tests.helpers.raw import GET, POST
from tests.helpers.service import Engines, engines

PROMPT = "zebra-in-the-prompt"
KEY = "sk-walrus-in-the-key"
WRONG_KEY = "sk-ocelot-in-the-wrong-key"
ENGINE_KEY = "sk-badger-in-the-engine-key"
ADMIN_KEY = "ferret-in-the-admin-key"
PARAMS = "marmot-in-the-kv-params"
QUERY = "gibbon-in-the-query"
THROWN = "lemur-in-an-exception"
SECRETS = (PROMPT, KEY, WRONG_KEY, ENGINE_KEY, ADMIN_KEY, PARAMS, QUERY, THROWN, "zebra", "marmot", "lemur")

POLICY = f"""
import random

class Throwing:
    dice = random.Random(0)
    def costs(self, leg, candidates):
        if leg.prompt_tokens == 3:
            try:
                raise KeyError("{THROWN[::-1]}"[::-1])
            except KeyError as error:
                raise ValueError("{THROWN[::-1]}"[::-1], leg) from error
        return [self.dice.random() for candidate in candidates]
"""


@contextlib.asynccontextmanager
async def serving(
    folder: pathlib.Path, made: Engines, odd: list[EchoingEngine]
) -> AsyncIterator[ProxyProcess]:
    """kvproxy as users start it, as talkative as it gets."""
    (folder / "keys").write_text(f"somebody {KEY}\n")
    (folder / "engine-key").write_text(ENGINE_KEY)
    (folder / "throwing.py").write_text(POLICY)
    [port] = free_ports(1)
    proxy = ProxyProcess(
        port,
        folder / "log",
        prefill=[made.prefill[0].address, odd[0].address],
        decode=[made.decode[0].address, odd[1].address],
        flags=[
            "--log-level", "debug", "--policy", "throwing:Throwing", "--api-key-file", str(folder / "keys"),
            "--engine-api-key-file", str(folder / "engine-key"),
        ],
        admin_key=ADMIN_KEY,
    )  # fmt: skip
    with proxy:
        await asyncio.to_thread(proxy.wait_status, "/ready")
        yield proxy


async def ask(session: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> int:
    """The status of an answer, however it ends."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    head |= {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.post(url, data=data, headers=head) as response:
        with contextlib.suppress(aiohttp.ClientPayloadError):
            await response.read()
        return response.status


def zebras(odd: EchoingEngine) -> int:
    """How many legs it was sent, releases left out."""
    return sum(b"zebra" in body for body in odd.legs)


async def drain(session: aiohttp.ClientSession, url: str, address: str, *, undo: bool = False) -> None:
    body = {"instance": address, "undo": undo}
    assert await ask(session, f"{url}/instances/drain", body, X_API_Key=ADMIN_KEY) == 200


async def test_nothing_of_a_request_is_in_the_log_or_the_metrics(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    statuses: set[int] = set()
    async with (
        engines(prefill=1, decode=1) as made,
        echoing_engine() as prefill,
        echoing_engine() as decode,
        serving(tmp_path, made, [prefill, decode]) as proxy,
        aiohttp.ClientSession() as session,
    ):
        chats, completions = f"{proxy.url}/v1/chat/completions", f"{proxy.url}/v1/completions"
        well = {"prefill": made.prefill[0].address, "decode": made.decode[0].address}
        for odd, kept in ((decode, "decode"), (prefill, "prefill")):
            others = [well[kept], prefill.address if kept == "decode" else decode.address]
            for address in others:  # or they would be preferred to one that fails
                await drain(session, proxy.url, address)
            for number in range(4 * len(WAYS)):
                if zebras(odd) > len(WAYS):
                    break  # it has failed in every way
                stream = number % 2 == 0
                common = {
                    "max_tokens": 3,
                    "stream": stream,
                    "kv_transfer_params": {"remote_engine_id": PARAMS},
                }
                if number % 3:
                    body = common | {"prompt": f"{PROMPT} {number}", "cache_salt": PROMPT, "user": PROMPT}
                    statuses.add(await ask(session, f"{completions}?q={QUERY}", body))
                else:
                    messages = [{"role": "user", "content": f"{PROMPT} {number}"}]
                    statuses.add(await ask(session, chats, common | {"messages": messages}))
            for address in others:
                await drain(session, proxy.url, address, undo=True)
        made.decode[0].faults.add(Fault(kind="cut", path="/v1/c", after_bytes=300, times=3))
        made.prefill[0].faults.add(Fault(kind="status", path="/v1/c", status=500, times=3))
        for number in range(6):
            statuses.add(
                await ask(session, completions, {"prompt": f"{PROMPT} again {number}", "stream": True})
            )
        statuses.add(await ask(session, f"{completions}?{QUERY}", {"prompt": [1, 2, 3], "user": PROMPT}))
        for bad in (
            {"prompt": PROMPT, "n": PROMPT},
            {"prompt": PROMPT, "model": PROMPT},
            {"prompt": [PROMPT, PROMPT, 1], "vllm_xargs": {"kv_transfer_params": PARAMS}},
            b'{"prompt": "' + PROMPT.encode() + b'\xff"}',
            PROMPT.encode(),
        ):
            statuses.add(await ask(session, completions, bad))
        statuses.add(await ask(session, completions, {"prompt": PROMPT}, Authorization=f"Bearer {WRONG_KEY}"))
        explain = f"{proxy.url}/explain?{QUERY}"
        statuses.add(await ask(session, explain, {"prompt": PROMPT}, X_API_Key=ADMIN_KEY))
        statuses.add(await ask(session, explain, {"prompt": PROMPT}, X_API_Key=WRONG_KEY))
        added = {"type": "prefill", "instance": f"{PROMPT}:{KEY}@127.0.0.1:1"}
        statuses.add(await ask(session, f"{proxy.url}/instances/add", added, X_API_Key=ADMIN_KEY))
        await odd_bytes(proxy)
        async with session.get(f"{proxy.url}/metrics") as response:
            metrics = await response.text()
        kv_params = {
            str(params[name])
            for seen in made.decode[0].seen
            if b"remote_engine_id" in seen.body
            for params in [json.loads(seen.body)["kv_transfer_params"]]
            for name in ("remote_engine_id", "remote_request_id")
        }
        for odd in (prefill, decode):
            assert zebras(odd) > len(WAYS)
    log = (tmp_path / "log").read_text(errors="replace")
    assert {200, 400, 401, 403, 404, 500} <= statuses
    assert kv_params
    for text in (log, metrics):
        assert [secret for secret in (*SECRETS, *kv_params) if secret in text] == []
    assert "client=somebody" in log
    assert "throwing.py" in log  # it does tell where
    assert "KeyError\ncaused by\n" in log or "caused by" in log
    assert re.search(r"kvproxy_requests_total\{outcome=\"failed\",route=\"completions\"\} 1\.0", metrics)


async def odd_bytes(proxy: ProxyProcess) -> None:
    """Requests that end before there is a handler."""
    host, port = proxy.url.removeprefix("http://").split(":")
    secret = f"{KEY} {PROMPT} {QUERY}".encode()
    for data in (
        secret + b"\r\n\r\n",
        GET + b"Authorization: Bearer " + secret + b"\x00\r\n\r\n",
        GET + b"X-A: " + secret * 4000 + b"\r\n\r\n",
        b"GET /?" + secret * 4000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff" + secret + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + secret + b"\r\n",
        POST + b"Authorization: Bearer " + KEY.encode() + b"\r\nContent-Length: 999\r\n\r\n" + secret,
        POST + b"Content-Length: " + secret + b"\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.3):
                await reader.read()
        writer.close()
