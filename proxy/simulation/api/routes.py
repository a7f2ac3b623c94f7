"""Invariant: a generating route is one value: how bodies are read, what is served, how answers are worded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.simulation.api.answers import Answers
from proxy.simulation.api.batches import Scores, check_batch, check_scoring, parse_batch, parse_scoring
from proxy.simulation.api.bodies import parse_chat, parse_completion
from proxy.simulation.api.validation import Asked, Checker


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


ROUTES = (
    GeneratingRoute("/v1/completions", parse_completion, Checker.completion, "cmpl"),
    GeneratingRoute("/v1/chat/completions", parse_chat, Checker.chat, "chatcmpl"),
)
"""The routes of vLLM 0.32 that kvproxy serves, too."""

WHOLE_ROUTES = (
    GeneratingRoute("/v1/chat/completions/batch", parse_batch, check_batch, "chatcmpl"),
    GeneratingRoute("/generative_scoring", parse_scoring, check_scoring, "generative-scoring", Scores),
)
"""The routes that serve several prompts at once, which kvproxy passes to one engine whole."""
