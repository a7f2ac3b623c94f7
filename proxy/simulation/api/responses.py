"""Invariant: a response has every member that vLLM 0.32 sends, in its order, and so has every event of its
stream.

`/v1/responses`: how bodies are read, which conversation the engine makes of them, how answers are worded.
"""

import itertools
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from proxy.simulation.api.answers import Answers
from proxy.simulation.api.bodies import check_salt
from proxy.simulation.api.errors import ApiError, BadRequestError
from proxy.simulation.api.generation import Choice, Generation, Piece
from proxy.simulation.api.schema import (
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
    record,
    seed,
    string,
    typed_dict,
    values_of,
    whatever,
)

_item = any_of(
    typed_dict({"role": literal("user", "system", "developer"), "content": any_of(string, list_of(mapping))},
               ("role", "content")),
    typed_dict({"role": literal("assistant"), "content": any_of(
        string, list_of(typed_dict({"text": string}, ("text",)))
    )}, ("role", "content")),
    typed_dict({"type": literal("function_call"), "call_id": string, "name": string, "arguments": string},
               ("type", "call_id", "name", "arguments")),
    typed_dict({"type": literal("function_call_output"), "call_id": string, "output": whatever},
               ("type", "call_id", "output")),
    typed_dict({"type": literal("reasoning"), "summary": list_of(mapping)}, ("type", "summary")),
)  # fmt: skip
"""The input items that the stand-in knows; vLLM knows two dozen more, and complains in the name of each."""

_MEMBERS: Mapping[str, Rule] = {
    "background": nullable(boolean),
    "include": nullable(list_of(string)),
    "input": any_of(string, list_of(_item)),
    "instructions": nullable(string),
    "max_output_tokens": nullable(integer()),
    "max_tool_calls": nullable(integer()),
    "metadata": nullable(mapping),
    "model": nullable(string),
    "logit_bias": nullable(values_of(number)),
    "parallel_tool_calls": nullable(boolean),
    "previous_response_id": nullable(string),
    "reasoning": nullable(mapping),
    "service_tier": literal("auto", "default", "flex", "scale", "priority"),
    "store": nullable(boolean),
    "stream": nullable(boolean),
    "temperature": nullable(number),
    "text": nullable(mapping),
    "tools": list_of(mapping),
    "top_logprobs": nullable(integer()),
    "top_p": nullable(number),
    "top_k": nullable(integer()),
    "min_p": nullable(number),
    "truncation": nullable(literal("auto", "disabled")),
    "user": nullable(string),
    "presence_penalty": nullable(number),
    "frequency_penalty": nullable(number),
    "repetition_penalty": nullable(number),
    "request_id": string,
    "session_id": nullable(string),
    "priority": integer(),
    "cache_salt": nullable(string),
    "seed": nullable(seed),
    "stop": nullable(any_of(string, list_of(string, at_most=4))),
    "stop_token_ids": nullable(list_of(integer())),
    "ignore_eos": boolean,
    "include_stop_str_in_output": boolean,
    "vllm_xargs": nullable(mapping),
    "kv_transfer_params": nullable(mapping),
    "chat_template_kwargs": nullable(mapping),
    "tool_choice": whatever,
}
_RESPONSE = record(_MEMBERS, required=("input",))


def parse_response(body: Any) -> dict[str, Any]:
    """The body of /v1/responses. Raises BadRequestError, which has no effect on a hold."""
    if isinstance(body, dict):
        check_salt(body.get("cache_salt"))
        if body.get("background") and not body.get("store", True):
            message = "background can only be used when `store` is true"
            raise BadRequestError.of(message, "background")
        if body.get("prompt") is not None:
            raise BadRequestError.of("prompt template is not supported", "prompt")
        _check_choice(body)
    known = check(body, _RESPONSE)
    return {name: value for name, value in known.items() if name in _MEMBERS}  # vLLM reads no others


def _check_choice(body: dict[str, Any]) -> None:
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if not isinstance(tools, list | None):
        return  # the schema refuses it
    named = isinstance(choice, dict)
    if not tools:
        if choice == "required":
            message = "Tool choice 'required' must be specified with 'tools' parameter."
            raise BadRequestError.of(message, "tool_choice")
        if not named:
            body["tool_choice"] = "none"
    if named and not any(isinstance(t, dict) and t.get("name") == choice.get("name") for t in tools or ()):
        message = "Tool choice 'function' not found in 'tools' parameter."
        raise BadRequestError.of(message, "tool_choice")


# -- answers ----------------------------------------------------------------------------------------------


def new_id(kind: str) -> str:
    """An id as vLLM makes them."""
    return f"{kind}_{uuid.uuid4().hex[:16]}"


def response_id(_prefix: str, body: Mapping[str, Any], _header: str | None) -> str:
    """The id of a response, which no header gives."""
    return str(body.get("request_id") or new_id("resp"))


@dataclass(frozen=True, slots=True)
class ResponseAnswers(Answers):
    """Builds the bodies and events of one response."""

    end: ClassVar[bytes | None] = None
    named: ClassVar[bool] = True
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _item: list[str] = field(default_factory=list)
    """The id of the message, once there is one."""

    def failed(self, error: ApiError) -> dict[str, Any] | None:  # noqa: ARG002  # vLLM cannot word it
        """None: the stream is cut off, since vLLM 0.32 has no event for an error."""
        return None

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The unstreamed answer."""
        [choice] = generation.choices
        return self._response(choice, self._output(choice, empty=True))

    def queued(self) -> dict[str, Any]:
        """The answer to a request that is served in the background."""
        return self._begun("queued")

    def greeting(self, generation: Generation) -> list[dict[str, Any]]:  # noqa: ARG002
        """The events before anything is computed."""
        return [
            self._event("response.created", response=self._begun("in_progress")),
            self._event("response.in_progress", response=self._begun("in_progress")),
        ]

    def opening(self, generation: Generation) -> list[dict[str, Any]]:  # noqa: ARG002
        """Nothing: a message begins with its first text."""
        return []

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """The events for one piece."""
        events = []
        if not piece.text:
            return []
        if not self._item:
            self._item.append(new_id("msg"))
            begun = self._message([], "in_progress")
            events += [
                self._event("response.output_item.added", item=begun, output_index=0),
                self._event(
                    "response.content_part.added", content_index=0, item_id=self._item[0], output_index=0,
                    part=self._part("", []),
                ),
            ]  # fmt: skip
        first = piece.generated - len(piece.tokens)
        told = self._told(piece.choice, first, piece.generated) or []
        events.append(
            self._event(
                "response.output_text.delta", content_index=0, delta=piece.text, item_id=self._item[0],
                logprobs=told, output_index=0,
            )
        )  # fmt: skip
        return events

    def closing(self, generation: Generation) -> list[dict[str, Any]]:
        """The events after all text, of which the last has the whole response."""
        [choice] = generation.choices
        events, output = [], []
        if self._item:
            text, place = choice.text.text, {"content_index": 0, "item_id": self._item[0], "output_index": 0}
            part = self._part(text, None)
            output = [self._message([part], "completed")]
            events = [
                self._event("response.output_text.done", **place, logprobs=[], text=text),
                self._event("response.content_part.done", **place, part=part),
                self._event("response.output_item.done", item=output[0], output_index=0),
            ]
        return [*events, self._event("response.completed", response=self._response(choice, output))]

    def messages(self, generation: Generation) -> list[dict[str, Any]]:
        """The conversation up to this answer, for requests that build on it."""
        text = generation.choices[0].text.text
        said = [{"role": "assistant", "content": text}] if text else []
        return [*self.asked.body["messages"], *said]

    # Parts.

    def _event(self, kind: str, **members: Any) -> dict[str, Any]:
        number = {"sequence_number": next(self._numbers)}
        before = {name: value for name, value in members.items() if name < "sequence_number"}
        after = {name: value for name, value in members.items() if name > "sequence_number"}
        return before | number | after | {"type": kind}

    def _output(self, choice: Choice, *, empty: bool) -> list[dict[str, Any]]:
        text = choice.text.text
        part = self._part(text, self._told(choice, 0, len(choice.tokens)))
        self._item.append(new_id("msg"))
        return [self._message([part] if text else [], "completed")] if text or empty else []

    def _message(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {
            "id": self._item[0],
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _part(self, text: str, logprobs: list[Any] | None) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def _told(self, choice: Choice, first: int, last: int) -> list[Any] | None:
        found = self._logprobs(choice, first, last)
        if found is None:
            return None
        names = ("token", "bytes", "logprob")
        return [
            {name: each[name] for name in names}
            | {"top_logprobs": [{name: top[name] for name in names} for top in each["top_logprobs"]]}
            for each in found["content"]
        ]

    def _begun(self, status: str) -> dict[str, Any]:
        return self._members(status, [], None, None)

    def _response(self, choice: Choice, output: list[dict[str, Any]]) -> dict[str, Any]:
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        return self._members(status, output, self._used(choice), choice)

    def _members(
        self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None, choice: Choice | None
    ) -> dict[str, Any]:
        body, [sampling] = self.asked.body, self.asked.sampling
        metrics = self._metrics([choice]) if choice is not None else None
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None

        def or_else(name: str, value: Any) -> Any:
            return value if body.get(name) is None else body[name]

        return {
            "id": self.id,
            "created_at": self.created,
            "incomplete_details": reason,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata"),
            "model": self.asked.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": or_else("parallel_tool_calls", True),
            "temperature": or_else("temperature", 1.0),
            "tool_choice": or_else("tool_choice", "auto"),
            "tools": [_tool(tool) for tool in body.get("tools") or ()],
            "top_p": or_else("top_p", 1.0),
            "background": or_else("background", False),
            "max_output_tokens": sampling.max_tokens,
            "max_tool_calls": body.get("max_tool_calls"),
            "previous_response_id": body.get("previous_response_id"),
            "prompt": None,
            "reasoning": body.get("reasoning"),
            "service_tier": or_else("service_tier", "auto"),
            "status": status,
            "text": body.get("text"),
            "top_logprobs": self.asked.logprobs,
            "truncation": or_else("truncation", "disabled"),
            "usage": usage,
            "user": body.get("user"),
            **({} if metrics is None else {"metrics": metrics}),
            "presence_penalty": or_else("presence_penalty", 0.0),
            "frequency_penalty": or_else("frequency_penalty", 0.0),
            "kv_transfer_params": choice.params if choice is not None else None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def _used(self, choice: Choice) -> dict[str, Any]:
        counts, details = self._counts([choice]), self._details(choice)
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": details["cached_tokens"],
                "cache_write_tokens": details["created_cache_tokens"] or 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": counts["total_tokens"],
        }


_OF_A_FUNCTION = (
    "name", "parameters", "strict", "type", "allowed_callers", "async", "defer_loading", "description",
    "output_schema",
)  # fmt: skip


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return dict(tool)
    return {name: tool.get(name) for name in _OF_A_FUNCTION}
