"""What kvproxy relies on, asked of the engines themselves: when one changes, this says which."""

import asyncio
from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.engine import BLOCK_TOKENS, EngineSpec
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose

PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}
FREED_S = 2


class Pair:
    """One prefill and one decode engine, and the two legs between them."""

    def __init__(self, session: aiohttp.ClientSession, prefill: EngineSpec, decode: EngineSpec) -> None:
        self.session = session
        self.prefill = prefill
        self.decode = decode

    async def prefilled(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await ask(
            self.session,
            self.prefill.url,
            COMPLETIONS,
            body | {"max_tokens": 1, "kv_transfer_params": PREFILL},
        )
        assert answer.status == 200, answer.body
        params: dict[str, Any] = answer.json["kv_transfer_params"]
        return params

    async def holds(self) -> bool:
        return (await read_metrics(self.session, self.prefill.url)).total("vllm:kv_cache_usage_perc") > 0

    async def wait_freed(self) -> None:
        async def freed() -> bool:
            return not await self.holds()

        await wait_until(freed, FREED_S, "the prefill engine holds nothing")


@pytest.fixture
async def pair(session: aiohttp.ClientSession, fleet: Fleet) -> Pair:
    """A pair that has transferred before and holds nothing."""
    made = Pair(session, fleet["prefill-0"], fleet["decode-0"])
    body = text("a handshake first")
    answer = await ask(
        session, made.decode.url, COMPLETIONS, body | {"kv_transfer_params": await made.prefilled(body)}
    )
    assert answer.status == 200
    await made.wait_freed()
    return made


def text(seed: str) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prose(150, seed), "max_tokens": 8, "temperature": 0}


async def test_a_decode_leg_frees_the_hold(pair: Pair) -> None:
    body = text("freed by decode")
    params = await pair.prefilled(body)
    assert params["do_remote_prefill"] is True
    assert params["remote_engine_id"]
    assert params["remote_prefill_cached_tokens"] == 0
    assert await pair.holds()
    answer = await ask(pair.session, pair.decode.url, COMPLETIONS, body | {"kv_transfer_params": params})
    assert answer.status == 200
    await pair.wait_freed()


async def test_a_refused_decode_leg_frees_the_hold(pair: Pair) -> None:
    params = await pair.prefilled(text("freed by a refusal"))
    refused = {"model": "no-such-model", "prompt": "x", "max_tokens": 1, "kv_transfer_params": params}
    assert (await ask(pair.session, pair.decode.url, COMPLETIONS, refused)).status == 404
    await pair.wait_freed()


async def test_a_decode_leg_with_a_broken_schema_does_not(pair: Pair) -> None:
    body = text("not freed by a broken schema")
    params = await pair.prefilled(body)
    broken = body | {"n": "x", "kv_transfer_params": params}
    assert (await ask(pair.session, pair.decode.url, COMPLETIONS, broken)).status == 400
    assert await pair.holds()
    await ask(pair.session, pair.decode.url, COMPLETIONS, body | {"kv_transfer_params": params})
    await pair.wait_freed()


async def test_a_decode_leg_that_is_left_frees_the_hold(pair: Pair) -> None:
    body = text("left in decode") | {"max_tokens": 500, "ignore_eos": True, "stream": True}
    params = await pair.prefilled(body | {"stream": False})
    async with pair.session.post(
        pair.decode.url + COMPLETIONS, json=body | {"kv_transfer_params": params}
    ) as answer:
        await answer.content.readline()
        answer.close()
    await pair.wait_freed()

    async def idle() -> bool:
        return (await read_metrics(pair.session, pair.decode.url)).total("vllm:num_requests_running") == 0

    await wait_until(idle, FREED_S, "the decode engine dropped the request")


async def test_cached_tokens_of_a_decode_leg_are_the_prefill_engines(pair: Pair) -> None:
    body = text("cached there")
    for expected in (0, None):
        params = await pair.prefilled(body)
        answer = await ask(pair.session, pair.decode.url, COMPLETIONS, body | {"kv_transfer_params": params})
        assert answer.reported == params["remote_prefill_cached_tokens"]
        if expected is None:
            assert answer.reported == (answer.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    await pair.wait_freed()


async def test_engines_tell_their_event_sources(session: aiohttp.ClientSession, fleet: Fleet) -> None:
    for spec in fleet.of_role("prefill"):
        async with session.get(f"{spec.url}/kv_event_sources") as answer:
            sources = await answer.json()
        assert list(sources) == ["0"]
        assert sources["0"]["endpoint"].endswith(f":{spec.events_port}")
        assert sources["0"]["replay_endpoint"].endswith(f":{spec.replay_port}")


async def test_tokenize_counts_as_the_engine_does(session: aiohttp.ClientSession, plain: str) -> None:
    messages = [{"role": "system", "content": prose(20, "s")}, {"role": "user", "content": prose(50, "u")}]
    answer = await ask(session, plain, CHAT, {"model": "tiny", "messages": messages, "max_tokens": 1})
    async with session.post(f"{plain}/tokenize", json={"model": "tiny", "messages": messages}) as counted:
        assert (await counted.json())["count"] == answer.prompt_tokens
    prompt = prose(50, "p")
    answer = await ask(session, plain, COMPLETIONS, {"model": "tiny", "prompt": prompt, "max_tokens": 1})
    async with session.post(f"{plain}/tokenize", json={"model": "tiny", "prompt": prompt}) as counted:
        assert (await counted.json())["count"] == answer.prompt_tokens


async def test_a_prefill_leg_runs_beside_others(pair: Pair) -> None:
    bodies = [text(f"side by side {n}") for n in range(8)]
    held = await asyncio.gather(*(pair.prefilled(body) for body in bodies))
    assert len({params["remote_request_id"] for params in held}) == len(bodies)
    answers = await asyncio.gather(
        *(
            ask(pair.session, pair.decode.url, COMPLETIONS, body | {"kv_transfer_params": params})
            for body, params in zip(bodies, held, strict=True)
        )
    )
    assert [answer.status for answer in answers] == [200] * len(bodies)
    await pair.wait_freed()
