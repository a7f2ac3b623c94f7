"""A process that ends says nothing, and the one after it is another engine: numbers from 0, nothing
cached."""

import asyncio
from collections.abc import Callable

import aiohttp
import pytest
import zmq.asyncio

from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT
from tests.contract.asking import Engine, chunks
from tests.contract.listening import Journal, Subscriber
from tests.contract.pairs import Pair
from tests.contract.prompts import ids
from tests.fleets import START_S

B = BLOCK_TOKENS
VICTIM = "decode-1"  # either role does both phases; this one is of no further use here
Restart = Callable[[], None]


@pytest.mark.timeout(START_S)
async def test_a_new_process_is_another_engine(
    engines: Fleet, session: aiohttp.ClientSession, engine: Engine, context: zmq.asyncio.Context
) -> None:
    victim = Engine(engines[VICTIM], session)
    pair = Pair(victim, Engine(engines["decode-0"], session), engine)
    await victim.at_rest()
    body = ids(2 * B + 1, "before the restart", 6)
    right = (await engine.served(body)).text
    assert (await pair.served(body)).text == right
    old = await pair.prefilled(body)
    assert old["remote_prefill_cached_tokens"] == 2 * B
    subscriber = Subscriber(context, engines[VICTIM])
    said = iter(range(1000))
    await subscriber.connected(lambda: victim.served(ids(B, f"said {next(said)}")))
    journal = Journal(context, engines[VICTIM])
    await journal.mark()
    await victim.served(ids(B, "said last"))
    await journal.stored(1)
    await journal.mark()
    while (message := await subscriber.message()) and int.from_bytes(message[1], "big") < journal.next - 1:
        pass

    engines.restart(VICTIM)
    await asyncio.to_thread(engines.wait_healthy, [VICTIM])
    assert await subscriber.message(0.2) is None, "nothing was said at the end or at the start"
    subscriber.close()
    reborn = Journal(context, engines[VICTIM])
    assert await reborn.since(0) == []
    assert await victim.used_blocks() == 0

    refused = await pair.decode.ask(body | {"kv_transfer_params": old})
    error = {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
    assert (refused.status, refused.json) == (500, {"error": error})

    chat = {"model": "tiny", "messages": [{"role": "user", "content": "who is there"}], "max_tokens": 6}
    streamed = await pair.decode.served(chat | {"kv_transfer_params": old, "stream": True}, CHAT)
    role, failed = chunks(streamed)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (failed, streamed.complete) == ({"error": error}, True), "an error that looks like an end"

    new = await pair.prefilled(body)
    assert new["remote_engine_id"] != old["remote_engine_id"]
    assert new["remote_port"] == old["remote_port"]
    assert new["remote_prefill_cached_tokens"] == 0
    assert (await pair.decoded(body, new)).text == right
    await reborn.stored(2)
    assert [number for number, _ in await reborn.since(0)] == [0]
