"""An engine that is full refuses with 503 what is one too much, says no more than that, and gives a hold
back.

The decode engines have limits that only many sequences of one request reach: no other test comes near them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS
from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import Engine, chunks
from tests.contract.pairs import Pair
from tests.contract.prompts import chat, ids, text
from tests.fleets import QUEUED_REQUESTS, QUEUED_TOKENS

B = BLOCK_TOKENS
FILLED_S = 20
AT_ONCE = 16  # --max-num-seqs
LONG = 1900  # tokens that take longer than a test
REJECTIONS = "vllm:admission_rejections_total"


def refusal(why: str) -> dict[str, Any]:
    message = f"The engine {why}. Please try again later or on a different instance."
    return {"error": {"message": message, "type": "Service Unavailable", "param": None, "code": 503}}


BUSY = refusal("is currently busy and cannot accept new requests")
BACKLOG = refusal("has reached its prefill token backlog limit")


@asynccontextmanager
async def many(engine: Engine, body: dict[str, Any], count: int) -> AsyncIterator[None]:
    """So many sequences of a request are under way."""

    async def under_way() -> bool:
        page = await engine.metrics()
        running, waiting = (page.total(f"vllm:num_requests_{gauge}") for gauge in ("running", "waiting"))
        return running + waiting == count

    async with engine.streaming(body | {"n": count, "temperature": 1}):
        await wait_until(under_way, FILLED_S, f"{count} sequences run or wait")
        yield
    await engine.at_rest()


@pytest.fixture
def decode(engines: Fleet, session: aiohttp.ClientSession) -> Engine:
    return Engine(engines["decode-0"], session)


async def test_one_more_than_there_is_room_for_is_refused(decode: Engine) -> None:
    told = set((await decode.ask(text("headers", model="nope"))).headers)
    before = await decode.metrics()
    async with many(decode, ids(B, "in the way", LONG), QUEUED_REQUESTS):
        for stream in (False, True):
            for path, body in ((COMPLETIONS, text("no room")), (CHAT, chat("no room"))):
                answer = await decode.ask(body | {"stream": stream}, path)
                assert (answer.status, answer.json) == (503, BUSY)
                assert answer.headers["Content-Type"] == "application/json"
                assert set(answer.headers) == told, "it says nothing of when to come back"
        status, _, _ = await decode.send("GET", "/health")
        assert status == 200, "it is full, not broken"
    after = await decode.metrics()
    grown = {
        reason: count - before.by("reason", REJECTIONS)[reason]
        for reason, count in after.by("reason", REJECTIONS).items()
    }
    assert grown == {"max_num_queued_reqs": 4, "max_num_queued_tokens": 0}
    await decode.served(text("room again"))


async def test_room_is_looked_for_after_the_schema_and_the_model_and_before_all_else(decode: Engine) -> None:
    async with many(decode, ids(B, "in the way", LONG), QUEUED_REQUESTS):
        for fields, status in (
            ({"n": "x"}, 400),
            ({"stream_options": {"include_usage": True}}, 400),
            ({"model": "nope"}, 404),
            ({"temperature": -1}, 503),
            ({"max_tokens": 0}, 503),
            ({"n": 0}, 503),
            ({"prompt": [[]]}, 503),
            ({"prompt": [300] * 3000}, 503),
        ):
            assert (await decode.ask(text("which comes first") | fields)).status == status, fields
        answer = await decode.ask(text("of no such rank"), X_data_parallel_rank="3")
        assert answer.status == 503


async def test_each_sequence_takes_a_place(decode: Engine) -> None:
    body = ids(B, "many at once", 1, temperature=1)
    assert len((await decode.served(body | {"n": QUEUED_REQUESTS})).choices) == QUEUED_REQUESTS
    answer = await decode.ask(body | {"n": QUEUED_REQUESTS + 1})
    assert (answer.status, answer.json) == (503, BUSY)


@pytest.mark.parametrize("stream", [False, True])
async def test_each_prompt_of_a_list_is_let_in_by_itself(decode: Engine, stream: bool) -> None:
    """Which is after a stream has its head."""
    prompts = [[300 + n] * B for n in range(QUEUED_REQUESTS + 1)]
    answer = await decode.ask(ids(1, "", LONG, prompt=prompts, stream=stream))
    if stream:
        assert (answer.status, answer.complete, chunks(answer)[-1]) == (200, True, BUSY)
    else:
        assert (answer.status, answer.json) == (503, BUSY)
    await decode.at_rest()


async def test_prompts_without_a_first_token_may_fill_it_too(decode: Engine) -> None:
    tokens, sequences = 1000, 60
    assert tokens * (sequences - AT_ONCE) > QUEUED_TOKENS, "those that wait are enough"
    async with many(decode, ids(tokens, "a long prompt", 700), sequences):
        for stream in (False, True):
            answer = await decode.ask(text("a short one", stream=stream))
            assert (answer.status, answer.json) == (503, BACKLOG)
        several = await decode.ask(text("several", n=QUEUED_REQUESTS - sequences + 1, temperature=1))
        assert several.json == BUSY, "which is looked at first"
    await decode.served(text("room again"))


async def test_prompts_of_one_list_count_for_those_behind(decode: Engine) -> None:
    prompts = [[300 + n] * 1000 for n in range(QUEUED_TOKENS // 1000 + 1)]
    answer = await decode.ask(ids(1, "", 1, prompt=prompts))
    assert (answer.status, answer.json) == (503, BACKLOG)
    await decode.at_rest()


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_decode_leg_that_is_refused_gives_its_hold_back(pair: Pair, path: str) -> None:
    body = ids(2 * B + 1, "no room for its blocks") if path == COMPLETIONS else chat("no room for its blocks")
    async with many(pair.decode, ids(B, "in the way", LONG), QUEUED_REQUESTS):
        for stream in (False, True):
            params = await pair.prefilled(body, path)
            assert await pair.held() > 0
            answer = await pair.decode.ask(body | {"kv_transfer_params": params, "stream": stream}, path)
            assert (answer.status, answer.json) == (503, BUSY)
            await pair.freed()
    await pair.decoded(body, await pair.prefilled(body, path), path)
