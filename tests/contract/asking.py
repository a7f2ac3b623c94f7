"""One engine as its clients see it. Whether it is real cannot be asked."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from scripts.workshop.engines.engine import BLOCK_TOKENS, EngineSpec
from scripts.workshop.live.asking import COMPLETIONS, Answer, ask
from scripts.workshop.live.metrics import Page, read_metrics
from scripts.workshop.live.waiting import wait_until

Body = dict[str, Any]
AT_REST_S = 5
"""An engine drops what nobody waits for within a step; the rest is for a busy machine."""


class Engine:
    """An engine and a client's session."""

    def __init__(self, spec: EngineSpec, session: aiohttp.ClientSession) -> None:
        self.spec = spec
        self.session = session

    @property
    def blocks(self) -> int:
        """Blocks that requests can use: one is the placeholder."""
        return self.spec.kv_tokens // BLOCK_TOKENS - 1

    async def ask(self, body: Body, path: str = COMPLETIONS, **headers: str) -> Answer:
        """POST a body and read the answer to its end."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await ask(self.session, self.spec.url, path, body, named)

    async def served(self, body: Body, path: str = COMPLETIONS, **headers: str) -> Answer:
        """As ask, for what must succeed."""
        answer = await self.ask(body, path, **headers)
        assert answer.status == 200, answer.body
        return answer

    async def get(self, path: str) -> Any:
        """The JSON of a GET."""
        async with self.session.get(self.spec.url + path) as answer:
            assert answer.status == 200
            return await answer.json()

    async def send(
        self, method: str, path: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Any request: status, headers and body of the answer."""
        async with self.session.request(
            method, self.spec.url + path, data=data, headers=headers, skip_auto_headers=("Content-Type",)
        ) as answer:
            return answer.status, answer.headers, await answer.read()

    @asynccontextmanager
    async def streaming(self, body: Body, path: str = COMPLETIONS) -> AsyncIterator[aiohttp.ClientResponse]:
        """A stream that has begun; its client leaves with the context."""
        async with self.session.post(self.spec.url + path, json=body | {"stream": True}) as answer:
            assert answer.status == 200
            await answer.content.readline()
            yield answer
            answer.close()

    async def metrics(self) -> Page:
        return await read_metrics(self.session, self.spec.url)

    async def metric(self, name: str, **labels: str) -> float:
        return (await self.metrics()).total(name, **labels)

    async def used_blocks(self) -> int:
        """Blocks that requests and holds use."""
        return round(await self.metric("vllm:kv_cache_usage_perc") * self.blocks)

    async def at_rest(self) -> None:
        """Wait until nothing runs, waits or is held."""

        async def rest() -> bool:
            page = await self.metrics()
            gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            return not any(page.total(f"vllm:{gauge}") for gauge in gauges)

        await wait_until(rest, AT_REST_S, f"{self.spec.name} is at rest")


def chunks(answer: Answer) -> list[Any]:
    """The events of a stream, the end announced."""
    events = [event.removeprefix(b"data: ") for event in answer.body.split(b"\n\n")]
    assert events[-2:] == [b"[DONE]", b""]
    return [json.loads(event) for event in events[:-2]]
