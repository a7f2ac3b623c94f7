"""Invariant: a generating route is one value: how bodies are read, what is served, how answers are worded."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.simulation.api.answers import Answers
from proxy.simulation.api.batches import Scores, check_batch, check_scoring, parse_batch, parse_scoring
from proxy.simulation.api.bodies import parse_chat, parse_completion
from proxy.simulation.api.errors import ApiError
from proxy.simulation.api.messages import MessagesAnswers, parse_messages, refusal
from proxy.simulation.api.responses import ResponseAnswers, parse_response, response_id
from proxy.simulation.api.token_ids import TokenIds, parse_generate
from proxy.simulation.api.validation import Asked, Checker


def named_by_client(prefix: str, body: Mapping[str, Any], header: str | None) -> str:
    """The id of an answer, which may be the client's own."""
    return f"{prefix}-{header or body.get('request_id') or uuid.uuid4().hex[:16]}"


@dataclass(frozen=True, slots=True)
class GeneratingRoute:
    """One generating route of a stand-in."""

    path: str
    parse: Callable[[Any], dict[str, Any]]
    """Makes a body that the stand-in knows of what was sent. Raises BadRequestError, which frees no hold."""
    check: Callable[[Checker, Mapping[str, Any]], Asked]
    """Makes the engine's task of a body. Raises ApiError, which makes a decode engine free the hold."""
    id_prefix: str
    """The beginning of the ids of answers and of the engine's requests."""
    answers: type[Answers] = Answers
    id_of: Callable[[str, Mapping[str, Any], str | None], str] = named_by_client
    """Makes the id of an answer of the prefix, the body and the header X-Request-Id."""
    stored: bool = False
    """Whether answers may be stored, and be built upon."""
    request_mark: str = ""
    """What the ids of the engine's requests have behind that of the answer."""
    refused: Callable[[ApiError], dict[str, Any]] = ApiError.body
    """The body of the answer to a request that was understood and refused."""


ROUTES = (
    GeneratingRoute("/v1/completions", parse_completion, Checker.completion, "cmpl"),
    GeneratingRoute("/v1/chat/completions", parse_chat, Checker.chat, "chatcmpl"),
    GeneratingRoute(
        "/v1/responses",
        parse_response,
        Checker.response,
        "resp",
        ResponseAnswers,
        response_id,
        stored=True,
        request_mark="_0",
    ),
    GeneratingRoute(
        "/v1/messages", parse_messages, Checker.chat, "chatcmpl", MessagesAnswers, refused=refusal
    ),
    GeneratingRoute("/inference/v1/generate", parse_generate, Checker.generate, "generate-tokens", TokenIds),
)
"""The routes of vLLM 0.32 that kvproxy serves, too."""

WHOLE_ROUTES = (
    GeneratingRoute("/v1/chat/completions/batch", parse_batch, check_batch, "chatcmpl"),
    GeneratingRoute("/generative_scoring", parse_scoring, check_scoring, "generative-scoring", Scores),
)
"""The routes that serve several prompts at once, which kvproxy passes to one engine whole."""
