"""What frees a hold before its lease is over, and what does not."""

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from proxy.connectors import NixlConnector
from proxy.request import dialects
from proxy.request.dialects import Usage
from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.asking import CHAT, COMPLETIONS, ask
from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import Engine
from tests.contract.pairs import FREED_S, PREFILL, Pair
from tests.contract.prompts import chat, ids, text

B = BLOCK_TOKENS
HELD = 3


def held(seed: str, max_tokens: int = 4, /, **fields: Any) -> dict[str, Any]:
    """A request whose prefill leg holds three blocks."""
    return ids(2 * B + 1, seed, max_tokens, **fields)


REFUSED: list[tuple[dict[str, Any], int]] = [
    ({"model": "nope"}, 404),
    ({"max_tokens": 0}, 400),
    ({"max_tokens": 9000}, 400),
    ({"min_tokens": 99}, 400),
    ({"prompt": [[]]}, 400),
    ({"prompt": []}, 400),
    ({"n": 0}, 400),
    ({"temperature": -1}, 400),
    ({"logprobs": 30}, 400),
]


@pytest.mark.parametrize(("fields", "status"), REFUSED)
async def test_a_refused_decode_leg_frees_the_hold(pair: Pair, fields: dict[str, Any], status: int) -> None:
    body = held(f"refused {fields}")
    params = await pair.prefilled(body)
    assert await pair.held() == HELD
    assert (await pair.decode.ask(body | fields | {"kv_transfer_params": params})).status == status
    await pair.freed()


async def test_a_refused_rank_frees_the_hold(pair: Pair) -> None:
    body = held("refused rank")
    params = await pair.prefilled(body)
    answer = await pair.decode.ask(body | {"kv_transfer_params": params}, X_data_parallel_rank="3")
    assert answer.status == 400
    await pair.freed()


async def test_a_hold_of_a_chat_is_freed_from_either_path(pair: Pair) -> None:
    for path, more in (
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}),
        (COMPLETIONS, {"prompt": "x"}),
    ):
        params = await pair.prefilled(chat("either path"), CHAT)
        assert await pair.held() > 0
        refused = {"model": "nope", "max_tokens": 1, "kv_transfer_params": params} | more
        assert (await pair.decode.ask(refused, path)).status == 404
        await pair.freed()


UNPARSED: list[dict[str, Any]] = [
    {"n": "x"},
    {"max_tokens": "x"},
    {"stream_options": {"include_usage": True}},
    {"prompt": ""},
    {"cache_salt": ""},
    {"logprobs": -2},
]


@pytest.mark.parametrize("fields", UNPARSED)
async def test_a_body_that_does_not_parse_frees_nothing(pair: Pair, fields: dict[str, Any]) -> None:
    body = held(f"unparsed {fields}")
    params = await pair.prefilled(body)
    assert (await pair.decode.ask(body | fields | {"kv_transfer_params": params})).status == 400
    await pair.decode.served(text("whatever it had to say is said"))
    assert await pair.held() == HELD
    await pair.refused(params)
    await pair.freed()


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("trap", [None, *UNPARSED[:3]])
async def test_what_kvproxy_sends_to_give_a_hold_back_frees_it(
    pair: Pair, path: str, trap: dict[str, Any] | None
) -> None:
    """Whatever came before: nothing, or a decode leg that its schema was too bad to tell of the hold."""
    connector = NixlConnector()
    body = held(f"given back {trap}") if path == COMPLETIONS else chat(f"given back {trap}")
    handoff = connector.read_handoff((await pair.leg(body, path)).body, Usage())
    assert await pair.held() > 0
    if trap is not None:
        params = msgspec.json.decode(handoff.params or b"")
        assert (await pair.decode.ask(body | trap | {"kv_transfer_params": params}, path)).status == 400
        await pair.decode.served(text("whatever it had to say is said"))
        assert await pair.held() > 0
    release = connector.release_body(dialects.COMPLETIONS.least(), handoff)
    assert release is not None
    headers = {"Content-Type": "application/json"}
    status, _, _ = await pair.decode.send("POST", COMPLETIONS, release, headers)
    assert status == 404
    await pair.freed()


async def test_a_refusal_after_the_pull_does_no_harm(pair: Pair) -> None:
    body = held("refused too late")
    before = await pair.decode.metric("vllm:nixl_num_failed_transfers_total")
    late = "vllm:nixl_num_notifications_after_expiry_total"
    notices = await pair.prefill.metric(late)
    params = await pair.prefilled(body)
    first = await pair.decoded(body, params)
    await pair.freed()
    await pair.refused(params)

    async def told() -> bool:
        # The engine counts when it next takes a step.
        await pair.prefill.served(text("a step", 1))
        return await pair.prefill.metric(late) == notices + 1

    await wait_until(told, FREED_S, "the prefill engine counts a notice that came too late")
    assert (await pair.served(body)).text == first.text
    assert await pair.decode.metric("vllm:nixl_num_failed_transfers_total") == before


@pytest.mark.parametrize("stream", [False, True])
async def test_a_decode_client_that_leaves_frees_the_hold(pair: Pair, stream: bool) -> None:
    body = held(f"left in decode {stream}", 1900)
    leg = body | {"kv_transfer_params": await pair.prefilled(body), "stream": stream}

    async def runs() -> bool:
        return await pair.decode.metric("vllm:num_requests_running") == 1

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask(pair.decode.session, pair.decode.spec.url, COMPLETIONS, leg))
        await wait_until(runs, FREED_S, "the decode leg runs")
        asked.cancel()
    await pair.freed()
    await pair.decode.at_rest()


async def test_a_client_that_leaves_a_queue_frees_the_hold(pair: Pair) -> None:
    body = held("left in the queue")
    params = await pair.prefilled(body)
    leg = body | {"kv_transfer_params": params}
    async with asyncio.TaskGroup() as group:
        busy = [
            group.create_task(pair.decode.ask(ids(B, f"busy {n}", 1900))) for n in range(16)
        ]  # --max-num-seqs

        async def full() -> bool:
            return await pair.decode.metric("vllm:num_requests_running") == len(busy)

        await wait_until(full, FREED_S, "the decode engine is full")
        asked = group.create_task(pair.decode.ask(leg))

        async def waits() -> bool:
            return await pair.decode.metric("vllm:num_requests_waiting") == 1

        await wait_until(waits, FREED_S, "the decode leg waits")
        asked.cancel()
        await pair.freed()
        for task in busy:
            task.cancel()


async def test_a_prefill_client_that_leaves_early_holds_nothing(pair: Pair) -> None:
    """It leaves while its second token is due: a leg is then neither finished nor to be found."""
    body = ids(B, "left in prefill", 1900, kv_transfer_params=PREFILL)

    async def runs() -> bool:
        return await pair.prefill.metric("vllm:num_requests_running") == 1

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(pair.prefill.ask(body))
        await wait_until(runs, FREED_S, "the prefill leg runs")
        asked.cancel()
    await pair.freed()


async def test_a_first_refusal_is_only_a_handshake(
    engines: Fleet, session: aiohttp.ClientSession, engine: Engine
) -> None:
    """To a prefill engine it never spoke with, a decode engine says nothing before its next step."""
    if await Engine(engines["decode-1"], session).metric("vllm:nixl_bytes_transferred_count"):
        engines.restart("decode-1")
        await asyncio.to_thread(engines.wait_healthy, ["decode-1"])
    fresh = Pair(Engine(engines["prefill-0"], session), Engine(engines["decode-1"], session), engine)
    body = held("never met")
    params = await fresh.prefilled(body)
    await fresh.refused(params)
    await fresh.stays(HELD)

    async def freed_by_another() -> bool:
        await fresh.refused(params)
        return not await fresh.held()

    await wait_until(freed_by_another, FREED_S, "another refusal frees it, once they have met")
    params = await fresh.prefilled(body)
    await fresh.refused(params)
    await fresh.freed()
