"""Invariant: what makes several prompts of one body is one task of the engine, with one choice for each.

Batches of conversations, and generative scoring, as vLLM 0.32 has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from proxy.simulation.api.answers import Answers
from proxy.simulation.api.bodies import parse_chat
from proxy.simulation.api.errors import BadRequestError, SchemaError
from proxy.simulation.api.generation import Generation
from proxy.simulation.api.schema import (
    any_of,
    boolean,
    check,
    integer,
    list_of,
    nullable,
    problem,
    record,
    string,
)
from proxy.simulation.api.validation import Asked, Checker
from proxy.simulation.engine.text import mix

_ids = list_of(integer())
_SCORING = record(
    {
        "model": nullable(string),
        "query": any_of(string, _ids),
        "items": any_of(list_of(string), list_of(_ids)),
        "label_token_ids": _ids,
        "apply_softmax": boolean,
        "item_first": boolean,
        "add_special_tokens": boolean,
        "cache_salt": nullable(string),
        "priority": integer(),
        "request_id": string,
    },
    required=("query", "items", "label_token_ids"),
)


_OF_ALL = ("model", "label_token_ids", "apply_softmax", "cache_salt", "session_id")
"""Members of a scoring request that count for each of its prompts; it has no others."""


def parse_batch(body: Any) -> dict[str, Any]:
    """A body whose `messages` are conversations. Raises BadRequestError."""
    conversations = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(conversations, list) or not conversations:
        parse_chat(body if not isinstance(body, dict) else {**body, "messages": conversations})
        raise SchemaError([problem("too_short", "body.messages", "List should have at least 1 item", [])])
    if body.get("n") not in (None, 1):
        raise BadRequestError.of(
            "Batch chat completions do not support `n > 1`. Please set `n` to 1.", "n", body["n"]
        )
    parsed = [parse_chat({**body, "messages": messages}) for messages in conversations]
    return {**parsed[0], "messages": [each["messages"] for each in parsed]}


def check_batch(checker: Checker, body: Mapping[str, Any]) -> Asked:
    """The task of all conversations. Raises ApiError."""
    asked = [checker.chat({**body, "messages": messages}) for messages in body["messages"]]
    prompts = [prompt for each in asked for prompt in each.prompts]
    return replace(asked[0], prompts=prompts, sampling=[s for each in asked for s in each.sampling])


def parse_scoring(body: Any) -> dict[str, Any]:
    """A query, items, and the tokens whose probability is asked for. Raises BadRequestError."""
    return check(body, _SCORING)


def check_scoring(checker: Checker, body: Mapping[str, Any]) -> Asked:
    """The task of all items: one token behind each. Raises ApiError."""
    labels, items = body["label_token_ids"], body["items"]
    for label in labels:
        checker.check_label(label)
    if not labels:
        raise BadRequestError("label_token_ids must contain at least one token ID.")
    if not items:
        raise BadRequestError("items must contain at least one item.")
    query = checker.ids_of(body["query"])
    ids = [checker.ids_of(item) for item in items]
    prompts = [[*item, *query] if body.get("item_first") else [*query, *item] for item in ids]
    rest = {name: body[name] for name in _OF_ALL if name in body}
    return checker.completion({**rest, "prompt": prompts, "max_tokens": 1, "temperature": 0.0})


class Scores(Answers):
    """The answers to scoring: probabilities that depend on the prompt and the labels alone."""

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The unstreamed answer."""
        body, choices = self.asked.body, generation.choices
        scores = [
            _score(choice.prompt, body["label_token_ids"], alone=not body.get("apply_softmax", True))
            for choice in choices
        ]
        return {
            "id": self.id,
            "object": "list",
            "created": self.created,
            "model": self.asked.model,
            "data": [{"index": n, "object": "score", "score": score} for n, score in enumerate(scores)],
            "usage": self._counts(choices)
            | {"prompt_tokens_details": None, "completion_tokens_details": None},
        }


_WEIGHTS = 1000


def _score(prompt: Sequence[int], labels: Sequence[int], *, alone: bool) -> float:
    """The share of the first label in the weights of all; `alone`: in those of the whole vocabulary, which
    are many times as many.
    """
    state = 0
    for token in prompt:
        state = mix(state + token)
    weights = [1 + mix(state + label) % _WEIGHTS for label in labels]
    return weights[0] / (_WEIGHTS * _WEIGHTS if alone else sum(weights))
