"""What else an engine serves answers as vLLM's does: models, tokens, events, version, and routes that are
none."""

import json
from typing import Any

import pytest

from scripts.workshop.live.asking import CHAT, COMPLETIONS
from scripts.workshop.live.waiting import wait_until
from scripts.workshop.live.words import prose
from tests.contract.asking import AT_REST_S, Engine
from tests.contract.shapes import assert_fits

NOT_FOUND = (404, b'{"detail":"Not Found"}')
NOT_ALLOWED = (405, b'{"detail":"Method Not Allowed"}')
CLOSED = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
ROUTES = [
    ("GET", "/health", (200, b"")),
    ("GET", "/ping", (200, b"")),
    ("POST", "/ping", (200, b"")),
    ("GET", "/version", (200, b'{"version":"0.32.0"}')),
    ("GET", "/load", (200, b'{"server_load":0}')),
    ("GET", "/", NOT_FOUND),
    ("GET", "/nothing", NOT_FOUND),
    ("POST", "/v1/embeddings", NOT_FOUND),
    ("GET", COMPLETIONS, NOT_ALLOWED),
    ("GET", CHAT, NOT_ALLOWED),
    ("POST", "/v1/models", NOT_ALLOWED),
    ("POST", "/health", NOT_ALLOWED),
    ("HEAD", "/health", (405, b"")),
]


@pytest.mark.parametrize(("method", "path", "expected"), ROUTES)
async def test_small_routes(engine: Engine, method: str, path: str, expected: tuple[int, bytes]) -> None:
    status, _, body = await engine.send(method, path)
    assert (status, body) == expected


@pytest.mark.parametrize("path", ["/inference/v1/generate", f"{CHAT}/render", f"{COMPLETIONS}/render"])
async def test_rendering_is_closed(engine: Engine, path: str) -> None:
    body = {
        "prompt": "x",
        "token_ids": [1],
        "sampling_params": {},
        "messages": [{"role": "user", "content": "x"}],
    }
    answer = await engine.ask(body, path)
    error = {"message": CLOSED, "type": "PermissionDeniedError", "param": None, "code": 403}
    assert (answer.status, answer.json) == (403, {"error": error})


async def test_models_are_the_model_and_its_adapters(engine: Engine) -> None:
    permission = {
        "id": str,
        "object": "model_permission",
        "created": int,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }

    def card(name: str, parent: str | None, length: int | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int,
            "owned_by": "vllm",
            "root": str,
            "parent": parent,
            "max_model_len": length,
            "permission": [permission],
        }

    models = [card("tiny", None, engine.spec.max_model_len), card("alpha", "tiny", None)]
    assert_fits(await engine.get("/v1/models"), {"object": "list", "data": models})


async def test_event_sources_tell_where_events_are_published(engine: Engine) -> None:
    spec = engine.spec
    source = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{spec.events_port}",
        "replay_endpoint": f"tcp://*:{spec.replay_port}",
        "buffer_steps": 10_000,
        "hwm": 100_000,
        "max_queue_size": 100_000,
        "topic": "kv-events",
    }
    assert_fits(await engine.get("/kv_event_sources"), {"0": source})


TOKENS = {"count": int, "max_model_len": 2048, "tokens": [int, ...], "token_strs": None}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the import statement"}]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "the import"}, [1698, 627]),
        ({"model": "alpha", "prompt": "the import"}, [1698, 627]),
        ({"prompt": "a<|end|>b"}, [67, 2, 68]),
    ],
)
async def test_text_becomes_the_models_tokens(
    engine: Engine, body: dict[str, Any], tokens: list[int]
) -> None:
    answer = await engine.ask({"model": "tiny"} | body, "/tokenize")
    assert_fits(answer.json, TOKENS | {"count": len(tokens), "tokens": tokens})


async def test_no_text_is_no_tokens(engine: Engine) -> None:
    assert (await engine.ask({"prompt": ""}, "/tokenize")).json["tokens"] == []


async def test_tokens_are_spelled_if_asked_for(engine: Engine) -> None:
    answer = await engine.ask({"prompt": "the import", "return_token_strs": True}, "/tokenize")
    assert answer.json["token_strs"] == ["the", "Ġimport"]


@pytest.mark.parametrize("fields", [{}, {"add_generation_prompt": False}, {"model": "alpha"}])
async def test_a_conversation_is_counted_as_it_is_served(engine: Engine, fields: dict[str, Any]) -> None:
    body = {"messages": MESSAGES} | fields
    counted = await engine.ask(body, "/tokenize")
    assert_fits(counted.json, TOKENS)
    served = await engine.served(body | {"max_tokens": 1}, CHAT)
    assert counted.json["count"] == served.prompt_tokens


async def test_tools_are_part_of_the_prompt(engine: Engine) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    counts = [
        (await engine.ask({"messages": MESSAGES} | more, "/tokenize")).json["count"]
        for more in ({}, {"tools": tools})
    ]
    plain, with_tools = counts
    assert with_tools > plain
    served = await engine.served(
        {"messages": MESSAGES, "tools": tools, "tool_choice": "none", "max_tokens": 1}, CHAT
    )
    assert served.prompt_tokens in {plain, with_tools}


@pytest.mark.parametrize(
    ("tokens", "text"), [([1698, 627], "the import"), ([1, 1698, 2], "<|turn|>the<|end|>"), ([], "")]
)
async def test_tokens_become_text(engine: Engine, tokens: list[int], text: str) -> None:
    assert (await engine.ask({"tokens": tokens}, "/detokenize")).json == {"prompt": text}


async def test_what_was_tokenized_comes_back(engine: Engine) -> None:
    text = prose(40, "there and back") + " Żółć\n\t<|end|>"
    tokens = (await engine.ask({"prompt": text}, "/tokenize")).json["tokens"]
    assert (await engine.ask({"tokens": tokens}, "/detokenize")).json == {"prompt": text}


async def test_load_is_what_is_being_answered(engine: Engine) -> None:
    body = {"prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}
    async with engine.session.post(engine.spec.url + COMPLETIONS, json=body) as answer:
        await answer.content.readline()
        assert await engine.get("/load") == {"server_load": 1}
        await answer.read()

    async def idle() -> bool:
        return bool(await engine.get("/load") == {"server_load": 0})

    await wait_until(idle, AT_REST_S, "the load is gone")


async def test_a_reset_fails_while_blocks_are_in_use(engine: Engine) -> None:
    async def reset() -> Any:
        status, _, body = await engine.send("POST", "/reset_prefix_cache")
        assert status == 200
        return json.loads(body)

    async with engine.streaming({"prompt": "x", "max_tokens": 1500, "ignore_eos": True}):
        assert await reset() == {"success": False}
    await engine.at_rest()
    assert await reset() == {"success": True}
