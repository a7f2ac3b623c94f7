"""An engine reports as cached what it did not compute: whole blocks, and never the last token."""

from typing import Any

import pytest

from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.live.asking import CHAT
from tests.contract.asking import Engine, chunks
from tests.contract.prompts import chat, ids, text, token_ids

B = BLOCK_TOKENS


@pytest.mark.parametrize(
    ("length", "cached"),
    [
        (B - 1, 0),
        (B, 0),
        (B + 1, B),
        (2 * B, B),
        (2 * B + 1, 2 * B),
        (3 * B - 1, 2 * B),
        (10 * B, 9 * B),
    ],
)
async def test_a_prompt_asked_again_is_cached_but_for_its_last_token(
    engine: Engine, length: int, cached: int
) -> None:
    body = ids(length, f"again {length}")
    assert [(await engine.served(body)).reported for _ in range(3)] == [0, cached, cached]


@pytest.mark.parametrize(("shared", "cached"), [(B - 1, 0), (B, B), (3 * B - 1, 2 * B), (3 * B, 3 * B)])
async def test_a_shared_beginning_is_cached_in_whole_blocks(engine: Engine, shared: int, cached: int) -> None:
    first = token_ids(5 * B, f"shared {shared}")
    other = [*first[:shared], 299, *first[shared + 1 :]]
    await engine.served(ids(0, "") | {"prompt": first})
    assert (await engine.served(ids(0, "") | {"prompt": other})).reported == cached


async def test_a_shared_end_is_not(engine: Engine) -> None:
    first = token_ids(4 * B, "an end")
    await engine.served(ids(0, "") | {"prompt": first})
    assert (await engine.served(ids(0, "") | {"prompt": first[1:]})).reported == 0


async def test_what_was_generated_is_cached_too(engine: Engine) -> None:
    body = ids(B, "next turn", 2 * B + 2, return_token_ids=True)
    [choice] = (await engine.served(body)).json["choices"]
    turn = body["prompt"] + choice["token_ids"] + token_ids(5, "the next question")
    assert (await engine.served(body | {"prompt": turn})).reported == 3 * B


@pytest.mark.parametrize(
    "other",
    [{"cache_salt": "b"}, {"cache_salt": None}, {"model": "alpha"}, {"model": "alpha", "cache_salt": "a"}],
)
async def test_another_salt_or_adapter_shares_nothing(engine: Engine, other: dict[str, Any]) -> None:
    body = ids(3 * B, f"apart {sorted(other.items())}", cache_salt="a")
    await engine.served(body)
    assert (await engine.served(body | other)).reported == 0
    assert (await engine.served(body)).reported == 2 * B


async def test_a_reset_forgets_all(engine: Engine) -> None:
    body = ids(3 * B, "forgotten")
    await engine.served(body)
    assert (await engine.served(body)).reported == 2 * B
    await engine.at_rest()
    status, _, answer = await engine.send("POST", "/reset_prefix_cache")
    assert (status, answer) == (200, b'{"success":true}')
    assert (await engine.served(body)).reported == 0


async def test_prompt_logprobs_compute_the_whole_prompt(engine: Engine) -> None:
    body = ids(3 * B, "all positions")
    await engine.served(body)
    assert (await engine.served(body | {"prompt_logprobs": 1})).reported == 0


async def test_a_chat_tells_what_it_added(engine: Engine) -> None:
    body = chat("added")
    first, second = await engine.served(body, CHAT), await engine.served(body, CHAT)
    full = first.prompt_tokens // B * B
    assert full > 0

    def created(usage: dict[str, Any]) -> Any:
        return usage["prompt_tokens_details"]["created_cache_tokens"]

    assert (first.reported, created(first.usage)) == (0, full)
    assert (second.reported, created(second.usage)) == (full, 0)


async def test_a_stream_reports_it_as_well(engine: Engine) -> None:
    body = text("streamed twice", 2) | {"prompt": token_ids(2 * B + 1, "streamed twice")}
    await engine.served(body)
    *_, last = chunks(await engine.served(body | {"stream": True, "stream_options": {"include_usage": True}}))
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2 * B}


async def test_choices_share_their_prompts_blocks(engine: Engine) -> None:
    before = await engine.metrics()
    await engine.served(ids(4 * B + 5, "shared by choices", 2, n=3, temperature=1))
    after = await engine.metrics()
    name = "vllm:prefix_cache_hits_total"
    assert after.total(name) - before.total(name) == 2 * 4 * B
