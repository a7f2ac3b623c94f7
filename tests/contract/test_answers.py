"""Answers have vLLM's fields in vLLM's order, whole and in pieces, and say how many tokens they took."""

from typing import Any

import pytest

from scripts.workshop.live.asking import CHAT, COMPLETIONS
from tests.contract.asking import Engine, chunks
from tests.contract.prompts import GREEDY, chat, text, token_ids
from tests.contract.shapes import assert_fits

USAGE = {
    "prompt_tokens": int,
    "total_tokens": int,
    "completion_tokens": int,
    "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": None, "multimodal_tokens": None},
    "completion_tokens_details": None,
}
CHAT_USAGE = USAGE | {
    "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": int, "multimodal_tokens": None}
}
COMPLETION_CHOICE = {
    "index": 0,
    "text": str,
    "logprobs": None,
    "finish_reason": "length",
    "stop_reason": None,
    "token_ids": None,
    "prompt_logprobs": None,
    "prompt_token_ids": None,
    "routed_experts": None,
}
COMPLETION = {
    "id": str,
    "object": "text_completion",
    "created": int,
    "model": "tiny",
    "choices": [COMPLETION_CHOICE],
    "service_tier": None,
    "system_fingerprint": str,
    "usage": USAGE,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "metrics": None,
}
MESSAGE = {
    "role": "assistant",
    "content": str,
    "refusal": None,
    "annotations": None,
    "audio": None,
    "function_call": None,
    "reasoning": None,
}
CHAT_CHOICE = {
    "index": 0,
    "message": MESSAGE,
    "logprobs": None,
    "finish_reason": "length",
    "stop_reason": None,
    "token_ids": None,
    "routed_experts": None,
}
CHAT_COMPLETION = {
    "id": str,
    "object": "chat.completion",
    "created": int,
    "model": "tiny",
    "choices": [CHAT_CHOICE],
    "service_tier": None,
    "system_fingerprint": str,
    "usage": CHAT_USAGE,
    "prompt_logprobs": None,
    "prompt_token_ids": None,
    "prompt_text": None,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "metrics": None,
}


async def test_a_completion_has_vllms_fields(engine: Engine) -> None:
    answer = await engine.served(text("fields"))
    assert answer.headers["Content-Type"] == "application/json"
    assert_fits(answer.json, COMPLETION)
    assert answer.json["id"].startswith("cmpl-")
    usage = answer.usage
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 4


async def test_a_chat_answer_has_vllms_fields(engine: Engine) -> None:
    answer = await engine.served(chat("fields"), CHAT)
    assert_fits(answer.json, CHAT_COMPLETION)
    assert answer.json["id"].startswith("chatcmpl-")
    assert answer.usage["completion_tokens"] == 4


def chunk(kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": str, "object": kind, "created": int, "model": "tiny", "choices": choices} | more


def completion_piece(finish: str | None = None) -> dict[str, Any]:
    return {
        "index": 0,
        "text": str,
        "logprobs": None,
        "finish_reason": finish,
        "stop_reason": None,
        "prompt_token_ids": None,
        "token_ids": None,
    }


def chat_piece(finish: str | None = None) -> dict[str, Any]:
    piece = {"index": 0, "delta": {"content": str}, "logprobs": None, "finish_reason": finish}
    return piece | ({"stop_reason": None} if finish else {}) | {"token_ids": None}


OPENING = {
    "index": 0,
    "delta": {"role": "assistant", "content": ""},
    "logprobs": None,
    "finish_reason": None,
}
NOTHING_TOLD: dict[str, Any] = {"prompt_token_ids": None, "prompt_text": None}
FINGERPRINT = {"system_fingerprint": str}


async def test_a_streamed_completion_has_vllms_chunks(engine: Engine) -> None:
    answer = await engine.served(text("chunks", 6, stream=True))
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    kind = "text_completion"
    # A busy engine sends several tokens in one event.
    *pieces, last = chunks(answer)
    assert_fits(pieces, [chunk(kind, [completion_piece()]), ...])
    assert_fits(last, chunk(kind, [completion_piece("length")], **FINGERPRINT))


async def test_a_streamed_chat_has_vllms_chunks(engine: Engine) -> None:
    answer = await engine.served(chat("chunks", 6, stream=True), CHAT)
    kind = "chat.completion.chunk"
    first, *pieces, last = chunks(answer)
    assert_fits(first, chunk(kind, [OPENING], **NOTHING_TOLD))
    assert_fits(pieces, [chunk(kind, [chat_piece()]), ...])
    assert_fits(last, chunk(kind, [chat_piece("length")], **FINGERPRINT))


@pytest.mark.parametrize(
    ("path", "details"),
    [(COMPLETIONS, {"cached_tokens": 0}), (CHAT, {"cached_tokens": 0, "created_cache_tokens": int})],
)
async def test_usage_is_a_last_chunk_if_asked_for(engine: Engine, path: str, details: dict[str, Any]) -> None:
    body = (chat if path == CHAT else text)("usage", 3, stream=True, stream_options={"include_usage": True})
    *pieces, last = chunks(await engine.served(body, path))
    usage = {"prompt_tokens": int, "total_tokens": int, "completion_tokens": 3}
    kind = "chat.completion.chunk" if path == CHAT else "text_completion"
    assert_fits(last, chunk(kind, [], usage=usage | {"prompt_tokens_details": details}, **FINGERPRINT))
    assert not any("usage" in piece or "system_fingerprint" in piece for piece in pieces)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_usage_is_in_every_chunk_if_asked_for(engine: Engine, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = (chat if path == CHAT else text)("continuous", 4, stream=True, stream_options=options)
    told = [piece["usage"] for piece in chunks(await engine.served(body, path))]
    counts = [usage["completion_tokens"] for usage in told]
    opening = [0] if path == CHAT else []
    between = counts[len(opening) : -2]
    assert counts == [*opening, *between, 4, 4]  # the last piece, and the sum
    assert between == sorted(set(between) & {1, 2, 3})
    assert between
    assert len({usage["prompt_tokens"] for usage in told}) == 1


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_stream_says_what_the_whole_answer_says(engine: Engine, path: str) -> None:
    body = (chat if path == CHAT else text)("said twice", 12)
    whole = await engine.served(body, path)
    streamed = await engine.served(body | {"stream": True}, path)
    assert streamed.text == whole.text
    assert len(whole.text) > 12


async def test_the_same_prompt_is_answered_alike_as_text_and_as_tokens(engine: Engine) -> None:
    body = text("as tokens", 8)
    tokens = (await engine.ask({"prompt": body["prompt"]}, "/tokenize")).json["tokens"]
    assert (await engine.served(body | {"prompt": tokens})).text == (await engine.served(body)).text


async def test_every_prompt_of_a_list_has_its_choice(engine: Engine) -> None:
    prompts = [token_ids(20, f"list {n}") for n in range(3)]
    body = GREEDY | {"max_tokens": 4, "ignore_eos": True}
    answer = await engine.served(body | {"prompt": prompts})
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
    assert list(answer.choices) == [(await engine.served(body | {"prompt": one})).text for one in prompts]
    assert answer.usage["prompt_tokens"] == 60
    assert answer.usage["completion_tokens"] == 12
    streamed = await engine.served(body | {"prompt": prompts, "stream": True})
    assert streamed.choices == answer.choices


@pytest.mark.parametrize(
    ("prompt", "choices"), [(["300", "301"], 2), (["300", 301], 1), ([["300"], [301, "302"]], 2)]
)
async def test_a_list_is_read_as_what_it_is_before_it_is_read_as_token_ids(
    engine: Engine, prompt: list[Any], choices: int
) -> None:
    answer = await engine.served(GREEDY | {"max_tokens": 2, "prompt": prompt})
    assert len(answer.json["choices"]) == choices


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_n_choices_differ_and_share_their_prompt(engine: Engine, path: str) -> None:
    body = (chat if path == CHAT else text)("choices", 8, n=3, temperature=1, seed=7)
    answer = await engine.served(body, path)
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
    assert len(set(answer.choices)) == 3
    assert answer.usage["completion_tokens"] == 24
    one = await engine.served(body | {"n": 1}, path)
    assert one.usage["prompt_tokens"] == answer.usage["prompt_tokens"]
    assert (await engine.served(body, path)).choices == answer.choices


async def test_an_adapter_answers_in_its_own_name(engine: Engine) -> None:
    base, adapted = await engine.served(text("adapter")), await engine.served(text("adapter", model="alpha"))
    assert adapted.json["model"] == "alpha"
    assert adapted.reported == 0, "what the base model has cached is of no use to it"
    assert base.json["model"] == "tiny"
