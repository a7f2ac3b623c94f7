"""Each answer of an engine about itself is read in one place: the questions, what is read of each answer, and
what counts as none.
"""

import json
from typing import Any

import pytest

from proxy.errors import LegBrokenError, LegError
from proxy.fleet import ModelCard
from proxy.headers import Headers
from proxy.request.body import Encoded
from proxy.upstream.engine_api import about
from proxy.upstream.engine_api.about import VERSION, asleep
from proxy.upstream.engine_api.asking import Question, UnreadableError, ask
from proxy.upstream.engine_api.event_sources import EVENT_SOURCES
from proxy.upstream.engine_api.metrics import METRICS
from proxy.upstream.engine_api.models import MAX_MODELS, MODELS
from proxy.upstream.engine_api.tokens import read_tokens, tokenize


class Engine:
    """Gives one answer to whatever it is asked."""

    def __init__(self, status: int, body: bytes | Any) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.asked: list[tuple[str, str, Encoded | bytearray | None]] = []

    async def exchange(
        self,
        method: str,
        instance: str,
        path: str,
        body: Encoded | bytearray | None,
        timeout_s: float,
        headers: Headers | None = None,
        *,
        max_bytes: int | None = None,
    ) -> tuple[int, bytes]:
        self.asked.append((method, path, body))
        return self.status, self.body


CARD = {"id": "tiny", "object": "model", "root": "/models/tiny", "parent": None, "max_model_len": 512}
ADAPTER = {"id": "alpha", "parent": "tiny"}
NO_LIST = "its /v1/models is not a list of models"


@pytest.mark.parametrize(
    ("question", "path", "body", "expected"),
    [
        (VERSION, "/version", {"version": "0.32.0", "more": 1}, "0.32.0"),
        (MODELS, "/v1/models", {"data": []}, []),
        (
            MODELS,
            "/v1/models",
            {"object": "list", "data": [CARD, ADAPTER]},
            [
                ModelCard("tiny", None, "/models/tiny", 512, CARD),
                ModelCard("alpha", "tiny", entry=ADAPTER),
            ],
        ),
        (
            MODELS,
            "/v1/models",
            {"data": [{"id": "odd", "root": 1, "max_model_len": "long"}]},
            [ModelCard("odd", entry={"id": "odd", "root": 1, "max_model_len": "long"})],
        ),
        (METRICS, "/metrics", b"vllm:x 1\n\xff", "vllm:x 1\n\N{REPLACEMENT CHARACTER}"),
        (
            EVENT_SOURCES,
            "/kv_event_sources",
            {"0": {"endpoint": "tcp://*:1"}},
            {"0": {"endpoint": "tcp://*:1"}},
        ),
    ],
)
async def test_an_answer_is_read(question: Question[Any], path: str, body: Any, expected: Any) -> None:
    engine = Engine(200, body)
    assert await ask(engine, "a:1", question, 1.0) == expected
    assert engine.asked == [("GET", path, None)]


@pytest.mark.parametrize(
    ("question", "status", "body", "words"),
    [
        (VERSION, 404, {"version": "1"}, "status 404 for /version"),
        (VERSION, 200, b"<html>", "the answer to /version is not JSON"),
        (EVENT_SOURCES, 200, b"[" * 100_000, "the answer to /kv_event_sources is not JSON"),
        (VERSION, 200, {"version": "1" * 201}, "its answer to /version is not what vLLM answers"),
        (VERSION, 200, {}, "its answer to /version is not what vLLM answers"),
        (MODELS, 200, b'{"data": [{"id": "\xff"}]}', "the answer to /v1/models is not JSON"),
        (MODELS, 200, [], NO_LIST),
        (MODELS, 200, {}, NO_LIST),
        (MODELS, 200, {"data": None}, NO_LIST),
        (MODELS, 200, {"data": [1]}, NO_LIST),
        (MODELS, 200, {"data": [{}]}, NO_LIST),
        (MODELS, 200, {"data": [{"id": 1}]}, NO_LIST),
        (MODELS, 200, {"data": [{"id": "m"}] * (MAX_MODELS + 1)}, "lists more than 4096 models"),
        (METRICS, 503, b"", "status 503 for /metrics"),
    ],
)
async def test_errors_of_wrong_answers_are_words_for_people(
    question: Question[Any], status: int, body: Any, words: str
) -> None:
    with pytest.raises(LegBrokenError, match=words):
        await ask(Engine(status, body), "a:1", question, 1.0)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"is_sleeping": True}, True),
        (200, {"is_sleeping": False}, False),
        (404, {"detail": "Not Found"}, None),
        (200, {"is_sleeping": "yes"}, LegError),
        (503, b"", LegError),
    ],
)
async def test_an_engine_that_does_not_know_the_question_cannot_sleep(
    status: int, body: Any, expected: Any
) -> None:
    engine = Engine(status, body)
    if expected is LegError:
        with pytest.raises(LegError):
            await asleep(engine, "a:1", 1.0)
    else:
        assert await asleep(engine, "a:1", 1.0) is expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"count": 2, "tokens": [1, 2**32 - 1]}, [1, 2**32 - 1]),
        *((status, {"error": "no"}, None) for status in (400, 422, 500)),
        (404, b"", r"it has no /tokenize \(status 404\)"),
    ],
)
async def test_tokens_are_told_refused_or_not_told(status: int, body: Any, expected: Any) -> None:
    engine = Engine(status, body)
    if isinstance(expected, str):
        with pytest.raises(LegBrokenError, match=expected):
            await tokenize(engine, "a:1", b"{}", 1.0)
        return
    answer = await tokenize(engine, "a:1", b"{}", 1.0)
    assert (None if answer is None else read_tokens(answer).tolist()) == expected
    assert engine.asked == [("POST", "/tokenize", b"{}")]


@pytest.mark.parametrize("told", [[-1], [2**32], [1.5], None, "x"])
def test_an_answer_without_token_ids_is_an_error(told: Any) -> None:
    with pytest.raises(UnreadableError, match="not what vLLM answers"):
        read_tokens(json.dumps({"tokens": told}).encode())


async def test_health_is_the_status_alone() -> None:
    assert await about.health(Engine(503, b"whatever"), "a:1", 1.0) == 503
