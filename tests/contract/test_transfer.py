"""A pair answers as one engine does: decode takes the prompt's KV from prefill and computes nothing of it."""

import asyncio
from typing import Any

import pytest
import zmq.asyncio

from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.live.asking import CHAT
from scripts.workshop.live.metrics import Page
from tests.contract.listening import Journal, hashes, stored_tokens
from tests.contract.pairs import PREFILL, Pair
from tests.contract.prompts import chat, ids, text, token_ids
from tests.contract.shapes import assert_fits

B = BLOCK_TOKENS
BYTES_PER_BLOCK = 32_768


async def test_a_prefill_leg_hands_on_params(pair: Pair) -> None:
    body = ids(2 * B + 7, "params")
    answer = await pair.leg(body)
    params = answer.json["kv_transfer_params"]
    assert_fits(
        params,
        {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [[int] * 3],
            "remote_engine_id": str,
            "remote_request_id": str,
            "remote_host": "127.0.0.1",
            "remote_port": pair.prefill.spec.side_port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": 2 * B + 7,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": 0,
        },
    )
    request_id, _, suffix = params["remote_request_id"].rpartition("-")
    assert request_id == f"{answer.json['id']}-0"
    assert len(suffix) == 8
    await pair.decoded(body, params)


async def test_a_chats_prefill_leg_names_its_request(pair: Pair) -> None:
    body = chat("params")
    answer = await pair.leg(body, CHAT)
    params = answer.json["kv_transfer_params"]
    request_id, _, suffix = params["remote_request_id"].rpartition("-")
    assert (request_id, len(suffix)) == (answer.json["id"], 8)
    await pair.decoded(body, params, CHAT)


async def test_a_hold_shows_as_cache_in_use_until_it_is_pulled(pair: Pair) -> None:
    body = ids(3 * B + 1, "held")
    params = await pair.prefilled(body)
    assert await pair.held() == 4
    page = await pair.prefill.metrics()
    assert page.total("vllm:num_requests_running") == page.total("vllm:num_requests_waiting") == 0
    await pair.decoded(body, params)
    await pair.freed()


@pytest.mark.parametrize("length", [1, B - 1, B, B + 1, 3 * B, 10 * B + 3])
async def test_a_pair_says_what_one_engine_says(pair: Pair, length: int) -> None:
    body = ids(length, f"as one {length}", 12)
    assert (await pair.served(body)).text == (await pair.plain.served(body)).text


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True},
        {"model": "alpha"},
        {"cache_salt": "s"},
        {"logprobs": 1},
        {"min_tokens": 3},
        {"kv_transfer_params": None},
    ],
)
async def test_a_pair_serves_what_one_engine_serves(pair: Pair, fields: dict[str, Any]) -> None:
    body = text(f"like one {sorted(fields)}", 8, **fields)
    answer, plain = await pair.served(body), await pair.plain.served(body)
    assert answer.text == plain.text
    assert answer.complete
    if not fields.get("stream"):
        assert answer.json["kv_transfer_params"] is None
        assert answer.usage == plain.usage


async def test_a_chat_goes_on_over_a_pair(pair: Pair) -> None:
    body = chat("a dialogue", 20)
    for turn in range(3):
        answer, plain = await pair.served(body, CHAT), await pair.plain.served(body, CHAT)
        assert answer.text == plain.text
        said = [
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": f"And now for part {turn} of it?"},
        ]
        body = body | {"messages": body["messages"] + said}


def grown(before: Page, after: Page) -> dict[str, float]:
    """Prompt tokens by where their KV came from, hits of the connector, and bytes moved."""
    names = {
        "queries": "vllm:external_prefix_cache_queries_total",
        "hits": "vllm:external_prefix_cache_hits_total",
        "bytes": "vllm:nixl_bytes_transferred_sum",
        "transfers": "vllm:nixl_bytes_transferred_count",
        "failed": "vllm:nixl_num_failed_transfers_total",
    }
    found = {key: after.total(name) - before.total(name) for key, name in names.items()}
    source = "vllm:prompt_tokens_by_source_total"
    was = before.by("source", source)
    found |= {key: value - was.get(key, 0) for key, value in after.by("source", source).items()}
    return {key: value for key, value in found.items() if value}


async def test_decode_computes_nothing_of_a_prompt(pair: Pair) -> None:
    body = ids(3 * B + 5, "nothing computed")
    params = await pair.prefilled(body)
    before = await pair.decode.metrics()
    await pair.decoded(body, params)
    tokens = 3 * B + 5
    assert grown(before, await pair.decode.metrics()) == {
        "queries": tokens,
        "hits": tokens,
        "bytes": 4 * BYTES_PER_BLOCK,
        "transfers": 1,
        "external_kv_transfer": tokens,
    }


NIXL = {
    "nixl_xfer_time_seconds_count",
    "nixl_xfer_time_seconds_sum",
    "nixl_bytes_transferred_count",
    "nixl_bytes_transferred_sum",
    "nixl_num_failed_transfers_total",
    "nixl_num_failed_notifications_total",
    "nixl_num_kv_expired_reqs_total",
    "nixl_num_notifications_after_expiry_total",
}


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_series_of_the_transfer_have_their_labels(pair: Pair, role: str) -> None:
    page = await getattr(pair, role).metrics()
    found = {name: set(page.by("model_name", f"vllm:{name}")) for name in NIXL}
    assert found == {name: {"tiny"} for name in NIXL}
    assert set(page.by("engine", "vllm:nixl_num_kv_expired_reqs_total")) == {"0"}


async def test_what_decode_has_cached_is_not_pulled(pair: Pair) -> None:
    first = token_ids(3 * B, "the first turn")
    await pair.served(ids(0, "", 2) | {"prompt": first})
    turn = ids(0, "", 2) | {"prompt": first + token_ids(2 * B + 3, "the second turn")}
    params = await pair.prefilled(turn)
    assert params["remote_prefill_cached_tokens"] == 3 * B
    before = await pair.decode.metrics()
    await pair.decoded(turn, params)
    assert grown(before, await pair.decode.metrics()) == {
        "queries": 2 * B + 3,
        "hits": 2 * B + 3,
        "bytes": 3 * BYTES_PER_BLOCK,
        "transfers": 1,
        "external_kv_transfer": 2 * B + 3,
        "local_cache_hit": 3 * B,
    }


async def test_cached_tokens_are_those_of_the_prefill_engine(pair: Pair) -> None:
    body = ids(4 * B, "cached there")
    for cached in (0, 3 * B):
        params = await pair.prefilled(body)
        assert params["remote_prefill_cached_tokens"] == cached
        assert (await pair.decoded(body, params)).reported == cached


async def test_what_was_pulled_is_stored_under_its_own_hashes(
    pair: Pair, context: zmq.asyncio.Context
) -> None:
    there, here = Journal(context, pair.prefill.spec), Journal(context, pair.decode.spec)
    await there.mark()
    await here.mark()
    body = ids(3 * B + 5, "announced twice")
    await pair.served(body)
    at_prefill, at_decode = await there.stored(3), await here.stored(3)
    assert stored_tokens(at_decode) == stored_tokens(at_prefill) == body["prompt"][: 3 * B]
    # Every engine of a test has a hash seed of its own.
    assert not set(hashes(at_decode)) & set(hashes(at_prefill))


async def test_legs_run_side_by_side(pair: Pair) -> None:
    bodies = [ids(2 * B + n, f"side by side {n}", 6) for n in range(8)]
    held = await asyncio.gather(*(pair.prefilled(body) for body in bodies))
    assert len({params["remote_request_id"] for params in held}) == len(bodies)
    assert len({block for params in held for block in params["remote_block_ids"][0]}) == 2 + 3 * 7
    answers = await asyncio.gather(
        *(pair.decoded(body, params) for body, params in zip(bodies, held, strict=True))
    )
    expected = [(await pair.plain.served(body)).text for body in bodies]
    assert [answer.text for answer in answers] == expected


async def test_every_choice_of_a_prompt_fetches_it_by_itself(pair: Pair) -> None:
    """The first to fetch ends the hold: the others read blocks that are anybody's. One is sure to be
    right."""
    body = ids(2 * B, "many of one", 6, n=2, temperature=1, seed=1)
    params = await pair.prefilled(body)
    before = await pair.decode.metrics()
    answer = await pair.decoded(body, params)
    assert grown(before, await pair.decode.metrics())["transfers"] == 2
    plain = (await pair.plain.served(body)).choices
    assert [one for one, other in zip(answer.choices, plain, strict=True) if one == other]


async def test_a_prompt_fetched_once_serves_every_choice(pair: Pair) -> None:
    body = ids(2 * B, "fetched before", 6, n=2, temperature=1, seed=1)
    await pair.served(body | {"n": 1, "max_tokens": 1})
    answer = await pair.decode.served(body)
    assert answer.reported == B
    assert answer.choices == (await pair.plain.served(body)).choices


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("params", [None, {}, {"do_remote_decode": False, "do_remote_prefill": False}])
async def test_without_params_either_serves_a_request_in_full(
    pair: Pair, role: str, params: dict[str, Any] | None
) -> None:
    body = text("in full", 6, kv_transfer_params=params)
    engine: Any = getattr(pair, role)
    assert (await engine.served(body)).text == (await pair.plain.served(body)).text
    await engine.at_rest()


async def test_a_stop_at_the_first_token_ends_both_legs(pair: Pair) -> None:
    body = text("ends at once", 8, logit_bias={"2": 100}, ignore_eos=False)
    leg = await pair.leg(body)
    assert leg.json["choices"][0]["finish_reason"] == "stop"
    assert await pair.held() > 0
    answer = await pair.decoded(body, leg.json["kv_transfer_params"])
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert answer.usage["completion_tokens"] == 1


async def test_tokens_in_the_params_replace_a_conversation(pair: Pair) -> None:
    """Why a client's params must never reach an engine: `messages` are then ignored."""
    body = chat("ignored", 6)
    tokens = token_ids(B + 3, "served instead")
    answer = await pair.decode.served(body | {"kv_transfer_params": {"prompt_token_ids": tokens}}, CHAT)
    assert answer.prompt_tokens == len(tokens)


async def test_an_engine_without_connector_ignores_params(pair: Pair) -> None:
    body = text("no connector", 6)
    answer = await pair.plain.served(body | {"kv_transfer_params": PREFILL})
    assert answer.json["kv_transfer_params"] is None
    assert await pair.plain.used_blocks() == 0


async def test_prompt_logprobs_make_decode_compute(pair: Pair) -> None:
    body = ids(2 * B, "positions", 2)
    params = await pair.prefilled(body)
    before = await pair.decode.metrics()
    answer = await pair.decoded(body | {"prompt_logprobs": 0}, params)
    assert len(answer.json["choices"][0]["prompt_logprobs"]) == 2 * B
    assert grown(before, await pair.decode.metrics()) == {"queries": 2 * B, "local_compute": 2 * B}
    await pair.freed()
