"""The API of a stand-in on real sockets."""

import json
from typing import Any

import aiohttp
import pytest

from proxy.simulation import StandIn
from tests.proxy.simulation.conftest import Ask, Start
from tests.proxy.simulation.driving import CHAT, COMPLETIONS

MESSAGES = [{"role": "user", "content": "Hello there, what is an import?"}]


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "the import statement", "temperature": 0, "max_tokens": 5, **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 5, **fields}


async def stream(http: aiohttp.ClientSession, engine: StandIn, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, the last of which is [DONE]."""
    async with http.post(engine.url + path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        text = await response.text()
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def test_what_a_plain_completion_looks_like(engine: StandIn, ask: Ask) -> None:
    status, body = await ask(engine, completion())
    assert status == 200
    [choice] = body["choices"]
    assert list(body) == [
        "id",
        "object",
        "created",
        "model",
        "choices",
        "service_tier",
        "system_fingerprint",
        "usage",
        "kv_transfer_params",
        "ec_transfer_params",
        "metrics",
    ]
    assert list(choice) == [
        "index",
        "text",
        "logprobs",
        "finish_reason",
        "stop_reason",
        "token_ids",
        "prompt_logprobs",
        "prompt_token_ids",
        "routed_experts",
    ]
    assert body["object"] == "text_completion"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert body["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 8,
        "completion_tokens": 5,
        "prompt_tokens_details": {
            "cached_tokens": 0,
            "created_cache_tokens": None,
            "multimodal_tokens": None,
        },
        "completion_tokens_details": None,
    }


async def test_what_a_chat_looks_like(engine: StandIn, ask: Ask) -> None:
    _, body = await ask(engine, chat(return_token_ids=True), CHAT)
    assert list(body["choices"][0]) == [
        "index",
        "message",
        "logprobs",
        "finish_reason",
        "stop_reason",
        "token_ids",
        "routed_experts",
    ]
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["content"] == engine.tokenizer.decode(body["choices"][0]["token_ids"])
    assert len(body["prompt_token_ids"]) == body["usage"]["prompt_tokens"] == 20
    assert body["usage"]["prompt_tokens_details"]["created_cache_tokens"] == 20
    assert body["kv_transfer_params"] is None


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, completion()), (CHAT, chat())])
async def test_a_stream_says_what_the_whole_answer_says(
    engine: StandIn, http: aiohttp.ClientSession, ask: Ask, path: str, body: dict[str, Any]
) -> None:
    events = await stream(http, engine, path, body)
    _, whole = await ask(engine, body, path)
    choices = [event["choices"][0] for event in events]
    if path == CHAT:
        opening = choices.pop(0)
        assert opening["delta"] == {"role": "assistant", "content": ""}
        text = "".join(choice["delta"]["content"] for choice in choices)
        assert text == whole["choices"][0]["message"]["content"]
    else:
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert len(choices) == 5
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]
    assert ["system_fingerprint" in event for event in events][-1]
    assert not any("usage" in event for event in events)


async def test_usage_is_streamed_when_asked_for(engine: StandIn, http: aiohttp.ClientSession) -> None:
    *_, last = await stream(http, engine, CHAT, chat(stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 20,
        "total_tokens": 25,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 20},
    }


async def test_usage_may_be_in_every_chunk(engine: StandIn, http: aiohttp.ClientSession) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await stream(http, engine, COMPLETIONS, completion(stream_options=options))
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 4, 5, 5]


async def test_every_choice_of_every_prompt(engine: StandIn, http: aiohttp.ClientSession, ask: Ask) -> None:
    body = completion(prompt=["the import", "some other text"], n=2, temperature=1, seed=3)
    _, whole = await ask(engine, body)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in whole["choices"]]
    assert len(set(texts)) == 4
    assert whole["usage"]["prompt_tokens"] == 6
    assert whole["usage"]["completion_tokens"] == 20
    streamed = [""] * 4
    for event in await stream(http, engine, COMPLETIONS, body):
        [choice] = event["choices"]
        streamed[choice["index"]] += choice["text"]
    assert streamed == texts


async def test_a_stop_string_ends_the_answer(engine: StandIn, http: aiohttp.ClientSession, ask: Ask) -> None:
    _, free = await ask(engine, completion(max_tokens=30))
    text = free["choices"][0]["text"]
    stop = text[10:14]
    _, stopped = await ask(engine, completion(max_tokens=30, stop=stop))
    [choice] = stopped["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["text"] == text[: text.index(stop)]
    assert stopped["usage"]["completion_tokens"] < 30
    events = await stream(http, engine, COMPLETIONS, completion(max_tokens=30, stop=stop))
    assert "".join(event["choices"][0]["text"] for event in events) == choice["text"]
    assert engine.model.unfinished == 0
    assert engine.model.stats.finished == {"length": 1, "stop": 2}


async def test_a_certain_end_token_ends_it_at_once(engine: StandIn, ask: Ask) -> None:
    _, body = await ask(engine, completion(logit_bias={"2": 100}))
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("", "stop", None)
    assert body["usage"]["completion_tokens"] == 1


async def test_log_probabilities_have_their_shapes(engine: StandIn, ask: Ask) -> None:
    _, body = await ask(engine, completion(logprobs=2, echo=True))
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["tokens"][:3] == ["the", " import", " statement"]
    assert logprobs["text_offset"][:4] == [0, 3, 10, 20]
    assert [len(top) for top in logprobs["top_logprobs"][3:]] == [2] * 5
    _, body = await ask(engine, chat(logprobs=True, top_logprobs=2), CHAT)
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == 5
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]
    assert len(content[0]["top_logprobs"]) == 2
    _, body = await ask(engine, completion(prompt_logprobs=1))
    assert [entry is None for entry in body["choices"][0]["prompt_logprobs"]] == [True, False, False]


async def test_a_request_id_is_honoured(engine: StandIn, ask: Ask) -> None:
    _, body = await ask(engine, chat(), CHAT, **{"X-Request-Id": "req-42"})
    assert body["id"] == "chatcmpl-req-42"
    _, body = await ask(engine, completion(request_id="abc"))
    assert body["id"] == "cmpl-abc"


async def test_a_request_id_may_come_back(start: Start, http: aiohttp.ClientSession) -> None:
    engine = await start(request_id_headers=True)
    async with http.get(engine.url + "/health", headers={"X-Request-Id": "mine"}) as response:
        assert response.headers["X-Request-Id"] == "mine"
    async with http.get(engine.url + "/nothing") as response:
        assert len(response.headers["X-Request-Id"]) == 32


async def test_adapters_are_listed_and_say_something_else(
    engine: StandIn, http: aiohttp.ClientSession, ask: Ask
) -> None:
    async with http.get(engine.url + "/v1/models") as response:
        cards = (await response.json())["data"]
    assert [(c["id"], c["parent"], c["max_model_len"]) for c in cards] == [
        ("tiny", None, 200),
        ("alpha", "tiny", None),
    ]
    _, plain = await ask(engine, completion())
    _, lora = await ask(engine, completion(model="alpha"))
    assert lora["model"] == "alpha"
    assert lora["choices"][0]["text"] != plain["choices"][0]["text"]


async def test_a_cached_prompt_is_reported(engine: StandIn, ask: Ask) -> None:
    await ask(engine, chat(), CHAT)
    _, body = await ask(engine, chat(), CHAT)
    details = body["usage"]["prompt_tokens_details"]
    assert (details["cached_tokens"], details["created_cache_tokens"]) == (16, 4)


async def test_text_to_tokens_and_back(engine: StandIn, ask: Ask) -> None:
    asked = {"model": "tiny", "prompt": "the import", "return_token_strs": True}
    assert await ask(engine, asked, "/tokenize") == (
        200,
        {"count": 2, "max_model_len": 200, "tokens": [1698, 627], "token_strs": ["the", "Ġimport"]},
    )
    assert await ask(engine, {"tokens": [1698, 627]}, "/detokenize") == (200, {"prompt": "the import"})
    _, rendered = await ask(engine, {"messages": MESSAGES}, "/tokenize")
    _, answered = await ask(engine, chat(return_token_ids=True), CHAT)
    assert rendered["tokens"] == answered["prompt_token_ids"]
    status, body = await ask(engine, {"model": "tiny"}, "/tokenize")
    assert (status, body["error"]["param"]) == (400, "body.prompt")


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/health", 200, b""),
        ("POST", "/ping", 200, b""),
        ("GET", "/version", 200, b'{"version":"0.32.0"}'),
        ("GET", "/load", 200, b'{"server_load":0}'),
        ("GET", "/nothing", 404, b'{"detail":"Not Found"}'),
        ("GET", COMPLETIONS, 405, b'{"detail":"Method Not Allowed"}'),
        ("HEAD", "/health", 405, b""),
        ("POST", "/v1/embeddings", 404, b'{"detail":"Not Found"}'),
        ("POST", "/reset_prefix_cache", 200, b'{"success":true}'),
    ],
)
async def test_small_routes(
    engine: StandIn, http: aiohttp.ClientSession, method: str, path: str, status: int, body: bytes
) -> None:
    async with http.request(method, engine.url + path) as response:
        assert (response.status, await response.read()) == (status, body)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (
            b'{"model": "tiny", "prompt": ',
            "application/json",
            (
                "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.28', 'msg': 'JSON decode "
                "error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}"
            ),
        ),
        (
            b"",
            "application/json",
            (
                "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', "
                "'input': 'None'}"
            ),
        ),
        (
            b"[1]",
            "application/json",
            (
                "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input "
                "should be a valid dictionary or object to extract fields from', 'input': '<list of 1 "
                "items>'}"
            ),
        ),
        (
            b'{"prompt": "x"}',
            "text/plain",
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
        ),
    ],
)
async def test_bodies_that_are_no_requests(
    engine: StandIn, http: aiohttp.ClientSession, data: bytes, kind: str, message: str
) -> None:
    async with http.post(engine.url + COMPLETIONS, data=data, headers={"Content-Type": kind}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"] == message


async def test_a_client_that_leaves_is_aborted(start: Start, http: aiohttp.ClientSession, until: Any) -> None:
    engine = await start(block_size=4, blocks=3000, max_model_len=8192)
    for streamed in (True, False):
        body = completion(max_tokens=8000, stream=streamed)
        if streamed:
            async with http.post(engine.url + COMPLETIONS, json=body) as response:
                await response.content.readany()
                assert engine.model.unfinished == 1
                assert engine.in_flight.count == 1
                response.close()
        else:
            with pytest.raises(TimeoutError):
                await http.post(
                    engine.url + COMPLETIONS, json=body, timeout=aiohttp.ClientTimeout(total=0.05)
                )
        await until(lambda: engine.model.unfinished == 0)
        await until(lambda: engine.in_flight.count == 0)
    assert engine.model.cache.pool.usage == 0.0
    assert engine.model.stats.finished == {}


async def test_ranks_are_chosen_or_named(start: Start, ask: Ask) -> None:
    engine = await start(block_size=4, blocks=64, max_model_len=200, ranks=3)
    for _ in range(6):
        await ask(engine, completion())
    assert [rank.model.stats.prompt_tokens for rank in engine.ranks] == [6, 6, 6]
    await ask(engine, completion(), COMPLETIONS, **{"X-data-parallel-rank": "2"})
    assert [rank.model.stats.prefix_hits > 0 for rank in engine.ranks] == [False] * 3
    assert engine.ranks[2].model.stats.prompt_tokens == 9
    status, body = await ask(engine, completion(), COMPLETIONS, **{"X-data-parallel-rank": "3"})
    assert (status, body["error"]["message"]) == (400, "data_parallel_rank 3 is out of range [0, 3).")
    status, _ = await ask(engine, completion(), COMPLETIONS, **{"X-data-parallel-rank": "x"})
    assert status == 200


async def test_timings_are_told_when_configured(start: Start, ask: Ask) -> None:
    engine = await start(request_metrics=True, prompt_tokens_details=False)
    _, body = await ask(engine, completion())
    assert set(body["metrics"]) == {
        "time_to_first_token_ms",
        "generation_time_ms",
        "queue_time_ms",
        "mean_itl_ms",
        "tokens_per_second",
    }
    assert body["metrics"]["time_to_first_token_ms"] >= 0
    assert body["usage"]["prompt_tokens_details"] is None


async def test_an_engine_that_could_not_start_is_refused(start: Start) -> None:
    with pytest.raises(ValueError, match="max_model_len 8192 does not fit 9 blocks of 16"):
        await start(blocks=10)


@pytest.mark.parametrize("taken", ["port", "replay", "side_port"])
async def test_a_taken_port_leaves_nothing_open(start: Start, taken: str) -> None:
    other = await start()
    port = {
        "port": other.port,
        "replay": int(other.replay_endpoint.rsplit(":", 1)[1]),
        "side_port": other.model.address[1],
    }[taken]
    with pytest.raises(OSError, match="in use"):
        await start(**{taken: port})


async def test_the_metrics_a_router_reads(engine: StandIn, http: aiohttp.ClientSession, ask: Ask) -> None:
    await ask(engine, chat(), CHAT)
    await ask(engine, chat(), CHAT)
    async with http.get(engine.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    first, second = 'engine="0"', 'model_name="tiny"'
    labels = f"{first},{second}"
    expected = {
        f"vllm:num_requests_running{{{labels}}}": 0,
        f"vllm:num_requests_waiting{{{labels}}}": 0,
        f'vllm:num_requests_waiting_by_reason{{{labels},reason="deferred"}}': 0,
        f"vllm:kv_cache_usage_perc{{{labels}}}": 0,
        f"vllm:prefix_cache_queries_total{{{labels}}}": 40,
        f"vllm:prefix_cache_hits_total{{{labels}}}": 16,
        f"vllm:external_prefix_cache_queries_total{{{labels}}}": 24,
        f"vllm:external_prefix_cache_hits_total{{{labels}}}": 0,
        f'vllm:prompt_tokens_by_source_total{{{labels},source="local_compute"}}': 24,
        f'vllm:prompt_tokens_by_source_total{{{labels},source="local_cache_hit"}}': 16,
        f'vllm:prompt_tokens_by_source_total{{{labels},source="external_kv_transfer"}}': 0,
        f'vllm:request_success_total{{{first},finished_reason="length",{second}}}': 2,
        f"vllm:nixl_num_kv_expired_reqs_total{{{labels}}}": 0,
        f"vllm:nixl_num_failed_transfers_total{{{labels}}}": 0,
        f"vllm:nixl_bytes_transferred_sum{{{labels}}}": 0,
        f"vllm:time_to_first_token_seconds_count{{{labels}}}": 2,
        f"vllm:inter_token_latency_seconds_count{{{labels}}}": 8,
        f"vllm:generation_tokens_total{{{labels}}}": 10,
        f"vllm:num_preemptions_total{{{labels}}}": 0,
    }
    assert {name: float(figures[name]) for name in expected} == expected
    [info] = [line for line in lines if line.startswith("vllm:cache_config_info")]
    assert 'block_size="4"' in info
    assert 'num_gpu_blocks="64"' in info


@pytest.mark.parametrize(
    "members",
    [
        b'"echo": {"type": "text"}',
        b'"seed": ' + b"9" * 5000,
        b'"top_p": ' + b"9" * 400,
        b'"messages": [{"role": "user", "content": [["text"]]}]',
        b'"messages": [{"role": "user", "content": {"a": ["text"]}}]',
        b'"tools": ["text"]',
        b'"prompt": [], "messages": [{"role": "user", "content": "' + b"word " * 9000 + b'"}]',
    ],
)
async def test_what_no_client_should_send_is_refused_and_not_failed_on(
    engine: StandIn, http: aiohttp.ClientSession, members: bytes
) -> None:
    begin = b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, '
    headers = {"Content-Type": "application/json"}
    async with http.post(engine.url + CHAT, data=begin + members + b"}", headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == 400
