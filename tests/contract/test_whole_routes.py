"""The routes that kvproxy passes to one engine whole answer on a text model as they do on the real engine."""

from typing import Any

import pytest

from scripts.workshop.live.asking import CHAT, COMPLETIONS
from tests.contract.asking import Engine
from tests.contract.shapes import assert_fits

BATCH = f"{CHAT}/batch"
SCORING = "/generative_scoring"
INVOCATIONS = "/invocations"
GREEDY = {"temperature": 0, "max_tokens": 4}


def turn(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


def said(answer: Any) -> list[Any]:
    return [
        (c["index"], c.get("text") or c["message"]["content"], c["finish_reason"]) for c in answer["choices"]
    ]


async def test_a_batch_is_its_conversations_one_after_the_other(engine: Engine) -> None:
    turns = [turn("the import statement"), turn("another")]
    batch = (await engine.served({"messages": turns} | GREEDY, BATCH)).json
    alone = [(await engine.served({"messages": each} | GREEDY, CHAT)).json for each in turns]
    assert batch["object"] == "chat.completion"
    assert [text for _, text, _ in said(batch)] == [text for each in alone for _, text, _ in said(each)]
    assert [index for index, _, _ in said(batch)] == [0, 1]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert batch["usage"][name] == sum(each["usage"][name] for each in alone)


@pytest.mark.parametrize(
    "body", [{"messages": [turn("x")], "n": 2}, {"messages": []}, {"messages": turn("x")}]
)
async def test_a_batch_that_is_none_is_refused(engine: Engine, body: dict[str, Any]) -> None:
    answer = await engine.ask(body, BATCH)
    assert (answer.status, answer.json["error"]["code"]) == (400, 400)


async def test_items_are_scored_by_the_labels_share(engine: Engine) -> None:
    body = {"query": "the import", "items": [" statement", " a"], "label_token_ids": [1698, 627]}
    answer = (await engine.served(body, SCORING)).json
    score = {"index": int, "object": "score", "score": float}
    usage = {
        "prompt_tokens": int,
        "total_tokens": int,
        "completion_tokens": 2,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    data = [score | {"index": index} for index in range(2)]
    fits = {"id": str, "object": "list", "created": int, "model": "tiny", "data": data, "usage": usage}
    assert_fits(answer, fits)
    assert all(0 <= each["score"] <= 1 for each in answer["data"])
    swapped = body | {"label_token_ids": [627, 1698]}
    other = (await engine.served(swapped, SCORING)).json
    for first, second in zip(answer["data"], other["data"], strict=True):
        assert first["score"] + second["score"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"label_token_ids": []}, "label_token_ids must contain at least one token ID."),
        ({"items": []}, "items must contain at least one item."),
        ({"label_token_ids": [1 << 20]}, "label_token_id 1048576 is out of vocabulary range [0, "),
    ],
)
async def test_what_cannot_be_scored_is_refused(engine: Engine, more: dict[str, Any], words: str) -> None:
    answer = await engine.ask({"query": "a", "items": ["b"], "label_token_ids": [5]} | more, SCORING)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith(words)


@pytest.mark.parametrize(("body", "path"), [({"prompt": "x"}, COMPLETIONS), ({"messages": turn("x")}, CHAT)])
async def test_an_invocation_is_what_its_body_is(engine: Engine, body: dict[str, Any], path: str) -> None:
    plain = await engine.served(body | GREEDY, path)
    invoked = await engine.served(body | GREEDY, INVOCATIONS)
    assert said(invoked.json) == said(plain.json)
    assert invoked.json["object"] == plain.json["object"]


async def test_an_invocation_of_nothing_is_refused(engine: Engine) -> None:
    answer = await engine.ask({"messages": 5}, INVOCATIONS)
    assert answer.status == 400


@pytest.mark.parametrize(
    "path", ["/pooling", "/score", "/v1/rerank", "/classify", "/v2/embed", "/v1/audio/translations"]
)
async def test_what_a_text_model_does_not_do_is_not_found(engine: Engine, path: str) -> None:
    status, _, body = await engine.send("POST", path)
    assert (status, body) == (404, b'{"detail":"Not Found"}')
