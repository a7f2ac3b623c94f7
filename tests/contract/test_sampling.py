"""What a request asks about its output - how long, until where, with what beside it - is done as vLLM does
it."""

from typing import Any

import pytest

from scripts.workshop.live.asking import CHAT, COMPLETIONS
from tests.contract.asking import Engine, chunks
from tests.contract.prompts import GREEDY, chat, ids, text, token_ids
from tests.contract.shapes import assert_fits

LENGTHS: list[tuple[str, dict[str, Any], int]] = [
    (COMPLETIONS, {"max_tokens": 1}, 1),
    (COMPLETIONS, {"max_tokens": None}, 16),
    (COMPLETIONS, {"max_tokens": "3"}, 3),
    (COMPLETIONS, {"max_tokens": 3, "min_tokens": 3}, 3),
    (CHAT, {"max_tokens": 9, "max_completion_tokens": 2}, 2),
    (CHAT, {"max_tokens": 2, "max_completion_tokens": 9}, 9),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": None}, 5),
]


@pytest.mark.parametrize(("path", "limits", "generated"), LENGTHS)
async def test_an_answer_is_as_long_as_was_asked(
    engine: Engine, path: str, limits: dict[str, Any], generated: int
) -> None:
    answer = await engine.served((chat if path == CHAT else text)("lengths", **limits), path)
    assert answer.usage["completion_tokens"] == generated


async def test_an_answer_ends_where_the_context_ends(engine: Engine) -> None:
    answer = await engine.served(ids(engine.spec.max_model_len - 2, "nearly full", 50))
    assert answer.usage["completion_tokens"] == 2
    assert answer.json["choices"][0]["finish_reason"] == "length"


async def test_only_the_end_of_a_prompt_is_kept_if_asked_for(engine: Engine) -> None:
    answer = await engine.served(text("cut", truncate_prompt_tokens=7))
    assert answer.prompt_tokens == 7


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_before_it(engine: Engine, stream: bool) -> None:
    whole = (await engine.served(text("stopped", 30))).text
    stop = whole[20:24]
    before = whole[: whole.index(stop)]
    answer = await engine.served(text("stopped", 30, stop=stop, stream=stream))
    assert answer.text == before
    last = chunks(answer)[-1] if stream else answer.json
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["stop_reason"]) == ("stop", stop)
    with_it = await engine.served(
        text("stopped", 30, stop=[stop], include_stop_str_in_output=True, stream=stream)
    )
    assert with_it.text == before + stop


async def test_a_stop_token_ends_the_answer_with_it(engine: Engine) -> None:
    free = await engine.served(text("stop token", 12, return_token_ids=True))
    tokens = free.json["choices"][0]["token_ids"]
    stop = tokens[5]
    answer = await engine.served(text("stop token", 12, stop_token_ids=[stop], return_token_ids=True))
    [choice] = answer.json["choices"]
    assert choice["token_ids"] == tokens[: tokens.index(stop) + 1]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


async def test_a_certain_end_ends_it_at_once_unless_more_is_demanded(engine: Engine) -> None:
    body = text("the end", 8, logit_bias={"2": 100}, ignore_eos=False)
    ended = await engine.served(body)
    assert (ended.text, ended.usage["completion_tokens"]) == ("", 1)
    assert ended.json["choices"][0]["finish_reason"] == "stop"
    assert ended.json["choices"][0]["stop_reason"] is None
    more = await engine.served(body | {"min_tokens": 3})
    assert more.usage["completion_tokens"] == 4
    assert (await engine.served(body | {"ignore_eos": True})).usage["completion_tokens"] == 8


async def test_token_ids_are_told_if_asked_for(engine: Engine) -> None:
    prompt = token_ids(9, "told")
    body = GREEDY | {"prompt": prompt, "max_tokens": 3, "ignore_eos": True, "return_token_ids": True}
    [choice] = (await engine.served(body)).json["choices"]
    assert choice["prompt_token_ids"] == prompt
    assert len(choice["token_ids"]) == 3
    pieces = [piece["choices"][0] for piece in chunks(await engine.served(body | {"stream": True}))]
    told, *others = [piece["prompt_token_ids"] for piece in pieces]
    assert told == prompt
    assert set(others) <= {None}
    assert [token for piece in pieces for token in piece["token_ids"]] == choice["token_ids"]
    again = chat("told", 3, return_token_ids=True)
    rendered = (await engine.ask({"messages": again["messages"]}, "/tokenize")).json["tokens"]
    answer = await engine.served(again, CHAT)
    assert answer.json["prompt_token_ids"] == rendered
    assert len(answer.json["choices"][0]["token_ids"]) == 3


async def test_a_beam_search_gives_as_many_choices_as_beams(engine: Engine) -> None:
    answer = await engine.served(text("beams", 3, use_beam_search=True, n=2))
    assert len(answer.choices) == 2


async def test_logprobs_of_a_completion_have_their_shape(engine: Engine) -> None:
    body = text("logprobs", 2, logprobs=2)
    answer = await engine.served(body)
    found = answer.json["choices"][0]["logprobs"]
    shape = {"text_offset": [0, int], "token_logprobs": [float] * 2, "tokens": [str] * 2}
    assert_fits(found, shape | {"top_logprobs": [dict(top) for top in found["top_logprobs"]]})
    assert found["text_offset"][1] == len(found["tokens"][0])
    assert "".join(found["tokens"]) == answer.text
    for token, logprob, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert 1 <= len(top) <= 2
        assert top[token] == logprob
    streamed = [
        piece["choices"][0]["logprobs"] for piece in chunks(await engine.served(body | {"stream": True}))
    ]
    for name in ("tokens", "text_offset"):
        assert [value for piece in streamed for value in piece[name]] == found[name]


async def test_logprobs_of_a_chat_have_their_shape(engine: Engine) -> None:
    entry = {"token": str, "logprob": float, "bytes": [int, ...]}
    for top, entries in ((2, [entry] * 2), (None, [])):
        body = chat("logprobs", 2, logprobs=True) | ({"top_logprobs": top} if top else {})
        shape = {"content": [entry | {"top_logprobs": entries}] * 2}
        assert_fits((await engine.served(body, CHAT)).json["choices"][0]["logprobs"], shape)


async def test_an_echo_is_the_prompt_before_the_answer(engine: Engine) -> None:
    body = text("echo", 2)
    plain = (await engine.served(body)).text
    assert (await engine.served(body | {"echo": True})).text == body["prompt"] + plain
    nothing_new = await engine.served(body | {"echo": True, "max_tokens": 0})
    assert nothing_new.text == body["prompt"]
    told = (await engine.served(body | {"echo": True, "logprobs": 1})).json["choices"][0]["logprobs"]
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert "".join(told["tokens"]) == body["prompt"] + plain


async def test_prompt_logprobs_are_one_entry_a_token(engine: Engine) -> None:
    prompt = token_ids(5, "prompt logprobs")
    answer = await engine.served(GREEDY | {"prompt": prompt, "max_tokens": 1, "prompt_logprobs": 1})
    first, *others = answer.json["choices"][0]["prompt_logprobs"]
    assert first is None
    entry = {"logprob": float, "rank": int, "decoded_token": str}
    for token, ranked in zip(prompt[1:], others, strict=True):
        assert_fits(ranked[str(token)], entry)
