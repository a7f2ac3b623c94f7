"""A body with odd members is refused, or they mean nothing, as for vLLM; a stand-in never fails."""

from collections.abc import Callable
from typing import Any

import pytest

from proxy.simulation.api.errors import BadRequestError
from proxy.simulation.api.messages import parse_counted
from proxy.simulation.api.routes import ROUTES
from proxy.simulation.api.validation import Checker
from proxy.simulation.engine.tokenizer import load_tokenizer

CHECKER = Checker(load_tokenizer(), "tiny", [], 512)
SAID = [{"role": "user", "content": "Hello"}]
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello", "max_tokens": 4},
    "/v1/chat/completions": {"messages": SAID, "max_tokens": 4},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 4},
    "/v1/messages": {"model": "tiny", "messages": SAID, "max_tokens": 4},
    "/inference/v1/generate": {"token_ids": [5], "sampling_params": {}},
}
ROUTE = {route.path: route for route in ROUTES}
FOREIGN: tuple[dict[str, Any], ...] = (
    {"n": {"a": 1}},
    {"n": "\0"},
    {"best_of": 2**63},
    {"min_tokens": [1.5]},
    {"bad_words": 7},
    {"allowed_token_ids": "x"},
    {"truncate_prompt_tokens": {}},
    {"thinking_token_budget": {}},
    {"prompt_logprobs": []},
)
"""Members of other routes."""
NAMED = {"type": "function", "function": {"name": "f"}}
A_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": 5}}}
REFUSED: tuple[tuple[str, dict[str, Any]], ...] = (
    *((path, {"structured_outputs": "off"}) for path in ("/v1/completions", "/v1/chat/completions")),
    *((path, {"logit_bias": {"5": [1]}}) for path in [*RIGHT][:3]),
    ("/inference/v1/generate", {"sampling_params": {"logit_bias": {"5": "x"}}}),
    ("/v1/chat/completions", {"structured_outputs": {"choice": 5}}),
    ("/v1/chat/completions", {"response_format": A_SCHEMA}),
    ("/v1/chat/completions", {"tools": 5, "tool_choice": NAMED}),
    ("/v1/chat/completions", {"tools": ["f"], "tool_choice": NAMED}),
    ("/v1/responses", {"tools": 5, "tool_choice": {"type": "function", "name": "f"}}),
    ("/v1/responses", {"input": [{"role": "assistant", "content": [{"type": "output_text"}]}]}),
    ("/v1/messages", {"thinking": {"type": [["enabled"]]}}),
)


def served(path: str, members: dict[str, Any]) -> Any:
    """What the engine is asked for."""
    return ROUTE[path].check(CHECKER, ROUTE[path].parse(RIGHT[path] | members))


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/inference/v1/generate"])
@pytest.mark.parametrize("members", FOREIGN, ids=str)
def test_members_of_other_routes_mean_nothing(path: str, members: dict[str, Any]) -> None:
    asked = served(path, members)
    assert asked.n == 1
    assert members.keys().isdisjoint(asked.body)


@pytest.mark.parametrize(("path", "members"), REFUSED, ids=str)
def test_odd_members_are_refused(path: str, members: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        served(path, members)


def test_a_status_that_is_no_word_continues_nothing() -> None:
    assert served("/v1/responses", {"input": [{**SAID[0], "status": [[]]}]}).prompts


PARSED: tuple[Callable[[Any], Any], ...] = (ROUTE["/v1/messages"].parse, parse_counted)


@pytest.mark.parametrize("parse", PARSED)
def test_a_tag_that_is_no_word_is_named(parse: Callable[[Any], Any]) -> None:
    with pytest.raises(BadRequestError, match=r"union_tag_invalid.*body\.thinking"):
        parse(RIGHT["/v1/messages"] | {"thinking": {"type": {}}})
