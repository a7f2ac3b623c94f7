"""Invariant: a request in Anthropic's words is the chat that vLLM makes of it, and is answered as vLLM does.

Bodies, answers, events and errors of `/v1/messages`, and bodies of its `/count_tokens`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from proxy.simulation.api.answers import Answers
from proxy.simulation.api.errors import ApiError
from proxy.simulation.api.generation import Choice, Generation, Piece
from proxy.simulation.api.messages_as_chats import chat_of
from proxy.simulation.api.schema import (
    Problems,
    Rule,
    any_of,
    boolean,
    check,
    integer,
    list_of,
    literal,
    mapping,
    nullable,
    number,
    problem,
    record,
    string,
    values_of,
)

# Bodies.


def _refusing(rule: Rule, is_wrong: Callable[[Any], bool], words: str, loc: str | None = None) -> Rule:
    """The rule, and a refusal of values that it passes and that are wrong all the same."""

    def whole(value: Any, at: str, problems: Problems) -> Any:
        own: Problems = []
        converted = rule(value, at, own)
        if not own and is_wrong(converted):
            found = problem("value_error", loc or at, f"Value error, {words}", value, error=ValueError(words))
            own.append(found)
        problems.extend(own)
        return converted

    return whole


def _tagged(**rules: Rule) -> Rule:
    """An object of the class that its `type` names."""
    tags = ", ".join(f"'{tag}'" for tag in rules)

    def whole(value: Any, loc: str, problems: Problems) -> Any:
        if not isinstance(value, dict):
            return mapping(value, loc, problems)
        tag = value.get("type")
        if "type" not in value:
            message = "Unable to extract tag using discriminator 'type'"
            problems.append(problem("union_tag_not_found", loc, message, value, discriminator="'type'"))
        elif not isinstance(tag, str) or tag not in rules:
            message = f"Input tag '{tag}' found using 'type' does not match any of the expected tags: {tags}"
            told = {"discriminator": "'type'", "tag": tag, "expected_tags": tags}
            problems.append(problem("union_tag_invalid", loc, message, value, **told))
        else:
            return rules[tag](value, f"{loc}.{tag}", problems)
        return value

    return whole


def _string_of(least: int) -> Rule:
    def whole(value: Any, loc: str, problems: Problems) -> Any:
        if isinstance(value, str) and len(value) < least:
            message = f"String should have at least {least} character"
            problems.append(problem("string_too_short", loc, message, value, min_length=least))
        return string(value, loc, problems)

    return whole


_BLOCK = record(
    {
        "type": literal(
            "text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking",
            "tool_addition", "tool_removal",
        ),
        "text": nullable(string),
        "source": nullable(mapping),
        "id": nullable(string),
        "tool_use_id": nullable(string),
        "name": nullable(string),
        "input": nullable(mapping),
        "content": nullable(any_of(string, list_of(mapping))),
        "is_error": nullable(boolean),
        "thinking": nullable(string),
        "signature": nullable(string),
        "data": nullable(string),
    },
    ("type",),
)  # fmt: skip
_blocks = any_of(string, list_of(_BLOCK))
_MESSAGE = record(
    {"role": literal("user", "assistant", "system"), "content": _blocks}, required=("role", "content")
)
_TOOL = record(
    {
        "name": string,
        "description": nullable(string),
        "input_schema": mapping,
        "strict": nullable(boolean),
        "defer_loading": nullable(boolean),
    },
    ("name", "input_schema"),
)
_CHOICE = _refusing(
    record({"type": literal("auto", "any", "tool", "none"), "name": nullable(string)}, ("type",)),
    lambda choice: choice.get("type") == "tool" and not choice.get("name"),
    "tool_choice.name is required when type is 'tool'",
)
_THINKING = _tagged(
    enabled=record({"budget_tokens": integer(at_least=1024)}, ("budget_tokens",)),
    disabled=record({}),
    adaptive=record({}),
)
_OUTPUT = record(
    {
        "effort": nullable(literal("low", "medium", "high", "xhigh", "max")),
        "format": nullable(record({"schema": nullable(mapping), "type": literal("json_schema")})),
    }
)
_ARGUMENT = (string, integer(), number)
_MODEL = _refusing(string, lambda name: not name, "Model is required")
_COUNTED = record(
    {
        "model": _MODEL,
        "messages": list_of(_MESSAGE),
        "output_config": nullable(_OUTPUT),
        "system": nullable(_blocks),
        "thinking": nullable(_THINKING),
        "tool_choice": nullable(_CHOICE),
        "tools": nullable(list_of(_TOOL)),
        "chat_template_kwargs": nullable(mapping),
    },
    ("model", "messages"),
)


def _has_budget(body: Mapping[str, Any]) -> bool:
    """Whether nothing is left of an answer after thinking. That is no matter of a prefill leg."""
    if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
        return False
    thinking = body.get("thinking") or {}
    return bool(thinking.get("type") == "enabled" and thinking["budget_tokens"] >= body["max_tokens"])


_ASKED = _refusing(
    record(
        {
            "model": _MODEL,
            "messages": list_of(_MESSAGE),
            "max_tokens": _refusing(integer(), lambda tokens: tokens <= 0, "max_tokens must be positive"),
            "metadata": nullable(mapping),
            "output_config": nullable(_OUTPUT),
            "thinking": nullable(_THINKING),
            "stop_sequences": nullable(list_of(string, at_most=4)),
            "stream": nullable(boolean),
            "system": nullable(_blocks),
            "temperature": nullable(number),
            "tool_choice": nullable(_CHOICE),
            "tools": nullable(list_of(_TOOL)),
            "top_k": nullable(integer()),
            "top_p": nullable(number),
            "cache_salt": nullable(_string_of(1)),
            "kv_transfer_params": nullable(mapping),
            "vllm_xargs": nullable(values_of(any_of(*_ARGUMENT, list_of(any_of(*_ARGUMENT))))),
            "chat_template_kwargs": nullable(mapping),
        },
        required=("model", "messages", "max_tokens"),
    ),
    _has_budget,
    "thinking.budget_tokens must be less than max_tokens",
    "body",
)


def parse_messages(body: Any) -> dict[str, Any]:
    """The chat that is asked for. Raises BadRequestError, which has no effect on a hold."""
    asked = check(body, _ASKED)
    chat = chat_of(asked)
    same = ("max_tokens", "temperature", "top_p", "top_k", "cache_salt", "kv_transfer_params", "vllm_xargs")
    chat |= {name: asked[name] for name in same if name in asked}
    chat["max_completion_tokens"] = asked["max_tokens"]
    if asked.get("stop_sequences") is not None:
        chat["stop"] = asked["stop_sequences"]
    if (asked.get("thinking") or {}).get("type") == "enabled":
        chat["thinking_token_budget"] = asked["thinking"]["budget_tokens"]
    if asked.get("stream"):
        chat |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    return chat


def parse_counted(body: Any) -> dict[str, Any]:
    """The chat whose length is asked for. Raises BadRequestError."""
    return chat_of(check(body, _COUNTED))


# Answers.


def refusal(error: ApiError) -> dict[str, Any]:
    """The answer to a request that was understood and refused."""
    return {"type": "error", "error": {"type": error.type, "message": error.message}}


@dataclass(frozen=True, slots=True)
class MessagesAnswers(Answers):
    """The words of one message."""

    end: ClassVar[bytes | None] = None
    named: ClassVar[bool] = True
    begun: list[bool] = field(default_factory=list)
    """Not empty once the stream has a block."""

    def whole(self, generation: Generation) -> dict[str, Any]:
        """As `Answers`; members without a value are left out."""
        [choice] = generation.choices
        reason, sequence = _stop(choice)
        body = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": choice.text.text}],
            "model": self.asked.model,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self._tokens(self._whole_usage(generation.choices)),
            "kv_transfer_params": choice.params,
        }
        return {name: value for name, value in body.items() if value is not None}

    def opening(self, generation: Generation) -> list[dict[str, Any]]:
        """As `Answers`."""
        [choice] = generation.choices
        message: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.asked.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._tokens(self._running_usage(choice, 0)),
        }
        return [{"type": "message_start", "message": message}]

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """As `Answers`. The block begins with its first text; nothing is said of a token without any."""
        if not piece.text:
            return []
        delta = {"type": "text_delta", "text": piece.text}
        told: list[dict[str, Any]] = [{"type": "content_block_delta", "delta": delta, "index": 0}]
        if not self.begun:
            self.begun.append(True)
            block = {"type": "text", "text": ""}
            told.insert(0, {"type": "content_block_start", "content_block": block, "index": 0})
        return told

    def closing(self, generation: Generation) -> list[dict[str, Any]]:
        """As `Answers`."""
        [choice] = generation.choices
        usage = self._counts(generation.choices)
        if self.prompt_details:
            usage["prompt_tokens_details"] = self._details(choice)
        reason, sequence = _stop(choice)
        told: list[dict[str, Any]] = [
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence},
                "usage": self._tokens(usage),
            },
            {"type": "message_stop"},
        ]
        if self.begun:
            told.insert(0, {"type": "content_block_stop", "index": 0})
        return told

    def failed(self, error: ApiError) -> dict[str, Any]:
        """As `Answers`. vLLM cannot read its own error as a chunk of a chat, and says so."""
        return {"type": "error", "error": {"type": "internal_error", "message": _UNREAD + error.message}}

    @staticmethod
    def _tokens(usage: Mapping[str, Any]) -> dict[str, Any]:
        """Anthropic counts what was cached, and what is cached now, apart from the rest of the prompt."""
        details = usage.get("prompt_tokens_details") or {}
        cached, created = details.get("cached_tokens"), details.get("created_cache_tokens")
        counted = {
            "input_tokens": max(0, usage["prompt_tokens"] - (cached or 0) - (created or 0)),
            "output_tokens": usage["completion_tokens"],
        }
        if created is not None:
            counted["cache_creation_input_tokens"] = created
        if cached is not None:
            counted["cache_read_input_tokens"] = cached
        return counted


_UNREAD = "4 validation errors for ChatCompletionStreamResponse: "


def _stop(choice: Choice) -> tuple[str | None, str | None]:
    """Why the message ends, and the stop sequence that ended it."""
    if choice.finish_reason == "length":
        return "max_tokens", None
    if choice.finish_reason != "stop":
        return None, None
    if isinstance(choice.stop_reason, str):
        return "stop_sequence", choice.stop_reason
    return "end_turn", None
