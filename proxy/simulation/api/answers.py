"""Invariant: answers have every key that vLLM sends, in its order, null where it sends null; chunks lack the
keys that vLLM leaves out.

The bodies of both endpoints, whole and streamed, made from the choices of a generation.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from proxy.simulation.api.errors import ApiError
from proxy.simulation.api.generation import Choice, Generation, Piece
from proxy.simulation.api.grammar import Call
from proxy.simulation.api.validation import Asked
from proxy.simulation.engine.text import Voice, mix
from proxy.simulation.engine.tokenizer import Tokenizer

_RANKED = 3571  # spreads the alternatives to a token over the vocabulary


def _call_id() -> str:
    return f"chatcmpl-tool-{uuid.uuid4().hex[:16]}"


@dataclass(frozen=True, slots=True)
class Answers:
    """Builds the bodies of one HTTP request."""

    asked: Asked
    id: str
    created: int
    fingerprint: str
    tokenizer: Tokenizer
    voice: Voice
    block_size: int
    prompt_details: bool
    request_metrics: bool
    last_chunk_params: bool
    """Whether the last chunk of a stream carries `kv_transfer_params`."""

    end: ClassVar[bytes | None] = b"[DONE]"
    """The data of a stream's last event, also after a failure; None if there is no such event."""
    named: ClassVar[bool] = False
    """Whether events have their type as a name."""

    def failed(self, error: ApiError) -> dict[str, Any] | None:
        """The event of a stream that failed; None if its connection is cut off instead."""
        return error.body()

    def greeting(self, generation: Generation) -> list[dict[str, Any]]:  # noqa: ARG002  # there is none
        """The events before anything is computed."""
        return []

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """The events for one piece."""
        chunk = self.chunk(piece)
        if self.asked.call is None:
            return [chunk]
        return self._calling(piece, self.asked.call, chunk)

    def _calling(self, piece: Piece, call: Call, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a piece of a call, which are made of the one that tells it as text."""
        tokens, before = piece.choice.tokens[: piece.generated], piece.generated - len(piece.tokens)
        told = call.told(len(self.tokenizer.decode(tokens)))
        known = call.told(len(self.tokenizer.decode(tokens[:before])))
        [entry] = chunk["choices"]
        last = piece.finish_reason is not None
        deltas: list[dict[str, Any]] = []
        if told is not None and known is None:
            named = {"id": _call_id(), "type": "function", "index": 0}
            deltas.append(named | {"function": {"name": call.name}})
        if more := (told or "")[len(known or "") :]:
            deltas.append({"index": 0, "function": {"arguments": more}})
        chunks = []
        for delta in deltas:
            shown = entry | {"delta": {"content": None, "tool_calls": [delta]}, "finish_reason": None}
            shown.pop("stop_reason", None)
            chunks.append({name: value for name, value in chunk.items() if name != "system_fingerprint"})
            chunks[-1]["choices"] = [shown]
        if last:
            entry |= {"delta": {}, "finish_reason": self._reason(piece.choice, called=told is not None)}
            chunks.append(chunk)
        return chunks

    def _reason(self, choice: Choice, *, called: bool) -> str | None:
        """Why a choice ended; a call that the client did not name ends for its own sake."""
        named = isinstance(self.asked.body.get("tool_choice"), dict)
        return (
            "tool_calls" if called and not named and choice.finish_reason == "stop" else choice.finish_reason
        )

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The unstreamed answer."""
        choices = generation.choices
        body: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion" if self.asked.chat else "text_completion",
            "created": self.created,
            "model": self.asked.model,
            "choices": [self._choice(choice) for choice in choices],
            "service_tier": None,
            "system_fingerprint": self.fingerprint,
            "usage": self._whole_usage(choices),
        }
        wants_ids = self.asked.body.get("return_token_ids")
        if self.asked.chat:
            body["prompt_logprobs"] = self._prompt_logprobs(choices[0])
            body["prompt_token_ids"] = list(choices[0].prompt) if wants_ids else None
            body["prompt_text"] = None
        body["kv_transfer_params"] = choices[-1 if self.asked.chat else self.asked.n - 1].params
        body["ec_transfer_params"] = None
        body["metrics"] = self._metrics(choices)
        return body

    def opening(self, generation: Generation) -> list[dict[str, Any]]:
        """The chunks before any text; those of a chat name the role of each choice."""
        if not self.asked.chat:
            return []
        chunks = []
        for choice in generation.choices:
            chunk = self._chunk(
                {
                    "index": choice.index,
                    "delta": {"role": self._role(), "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                }
            )
            if self._continuous():
                chunk["usage"] = self._running_usage(choice, 0)
            wants_ids = self.asked.body.get("return_token_ids")
            chunk["prompt_token_ids"] = list(choice.prompt) if wants_ids else None
            chunk["prompt_text"] = None
            chunks.append(chunk)
        return chunks

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """The chunk for one piece."""
        choice, wants_ids = piece.choice, self.asked.body.get("return_token_ids")
        first = piece.generated == len(piece.tokens)
        token_ids = list(piece.tokens) if wants_ids else None
        offset = piece.generated - len(piece.tokens)
        if self.asked.chat:
            entry: dict[str, Any] = {
                "index": choice.index,
                "delta": {"content": piece.text},
                "logprobs": self._logprobs(choice, offset, piece.generated),
                "finish_reason": piece.finish_reason,
            }
            if piece.finish_reason is not None:
                entry["stop_reason"] = choice.stop_reason
            entry["token_ids"] = token_ids
        else:
            echoed = self._echo(choice) if first else ""
            entry = {
                "index": choice.index,
                "text": echoed + piece.text,
                "logprobs": self._logprobs(choice, offset, piece.generated),
                "finish_reason": piece.finish_reason,
                "stop_reason": choice.stop_reason if piece.finish_reason is not None else None,
                "prompt_token_ids": list(choice.prompt) if wants_ids and first else None,
                "token_ids": token_ids,
            }
        chunk = self._chunk(entry)
        if piece.finish_reason is not None and not self._includes_usage():
            chunk["system_fingerprint"] = self.fingerprint
        if self._continuous():
            chunk["usage"] = self._running_usage(choice, piece.generated)
        if self.last_chunk_params and piece.finish_reason is not None:
            chunk["kv_transfer_params"] = choice.params
        return chunk

    def closing(self, generation: Generation) -> list[dict[str, Any]]:
        """The chunk after all text: usage, if it was asked for."""
        if not self._includes_usage():
            return []
        usage = self._counts(generation.choices)
        if self.prompt_details:
            details = self._details(generation.choices[-1])
            usage["prompt_tokens_details"] = {k: v for k, v in details.items() if v is not None}
        chunk = self._chunk(None)
        chunk["usage"] = usage
        chunk["system_fingerprint"] = self.fingerprint
        if (metrics := self._metrics(generation.choices)) is not None:
            chunk["metrics"] = metrics
        return [chunk]

    # Parts.

    def _chunk(self, entry: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk" if self.asked.chat else "text_completion",
            "created": self.created,
            "model": self.asked.model,
            "choices": [entry] if entry is not None else [],
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        wants_ids = self.asked.body.get("return_token_ids")
        token_ids = list(choice.tokens) if wants_ids else None
        logprobs = self._logprobs(choice, 0, len(choice.tokens))
        ending = {
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "token_ids": token_ids,
        }
        if self.asked.chat:
            message = {
                "role": self._role(),
                "content": choice.text.text,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            }
            call = self.asked.call
            if call is not None and choice.text.text == call.text:
                message = self._with_call(message, call)
                ending["finish_reason"] = self._reason(choice, called=True)
            return {"index": choice.index, "message": message, **ending, "routed_experts": None}
        text = self._echo(choice) + ("" if self._echo_only() else choice.text.text)
        return {
            "index": choice.index,
            "text": text,
            **ending,
            "prompt_logprobs": self._prompt_logprobs(choice),
            "prompt_token_ids": list(choice.prompt) if wants_ids else None,
            "routed_experts": None,
        }

    def _with_call(self, message: dict[str, Any], call: Call) -> dict[str, Any]:
        """A message that is a call."""
        function = {"name": call.name, "arguments": call.arguments}
        free = self.asked.body.get("tool_choice") in (None, "auto")
        reasoning = message.pop("reasoning")
        calls = [{"id": _call_id(), "type": "function", "function": function}]
        return {**message, "content": None if free else "", "tool_calls": calls, "reasoning": reasoning}

    def _role(self) -> str:
        body = self.asked.body
        return "assistant" if body.get("add_generation_prompt", True) else str(body["messages"][-1]["role"])

    def _echo(self, choice: Choice) -> str:
        echo = self.asked.body.get("echo") and not self.asked.body.get("return_token_ids")
        return self.tokenizer.decode(choice.prompt) if echo else ""

    def _echo_only(self) -> bool:
        return bool(self.asked.body.get("echo")) and self.asked.body.get("max_tokens") == 0

    def _includes_usage(self) -> bool:
        return bool((self.asked.body.get("stream_options") or {}).get("include_usage"))

    def _continuous(self) -> bool:
        options = self.asked.body.get("stream_options") or {}
        return bool(options.get("include_usage") and options.get("continuous_usage_stats"))

    def _counts(self, choices: Sequence[Choice]) -> dict[str, Any]:
        prompt = sum(len(tokens) for tokens in self.asked.prompts)
        completion = sum(len(choice.tokens) for choice in choices)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def _running_usage(self, choice: Choice, generated: int) -> dict[str, Any]:
        prompt = len(choice.prompt)
        usage = {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}
        return {**usage, "completion_tokens_details": None} if self.asked.chat else usage

    def _whole_usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        usage = self._counts(choices)
        usage["prompt_tokens_details"] = self._details(choices[-1]) if self.prompt_details else None
        usage["completion_tokens_details"] = None
        return usage

    def _details(self, choice: Choice) -> dict[str, Any]:
        request = choice.request
        cached = request.local_hit + request.external_hit
        told = self.asked.transfer.get("remote_prefill_cached_tokens")
        created = max(request.prompt_length // self.block_size * self.block_size - cached, 0)
        return {
            "cached_tokens": told if isinstance(told, int) else cached,
            "created_cache_tokens": created if self.asked.chat else None,
            "multimodal_tokens": None,
        }

    def _metrics(self, choices: Sequence[Choice]) -> dict[str, Any] | None:
        request = choices[0].request
        if not self.request_metrics or len(choices) > 1:
            return None
        scheduled, first, last = request.scheduled_s, request.first_token_s, request.last_token_s
        if scheduled is None or first is None or last is None:
            return None
        tokens = request.generated
        return {
            "time_to_first_token_ms": (first - scheduled) * 1000,
            "generation_time_ms": (last - first) * 1000,
            "queue_time_ms": (scheduled - request.arrived_s) * 1000,
            "mean_itl_ms": (last - first) * 1000 / (tokens - 1) if tokens > 1 else None,
            "tokens_per_second": tokens / (last - scheduled) if last > scheduled else None,
        }

    # Log probabilities: their shape is vLLM's, their values are plausible.

    def _ranked(self, token: int, context: int, count: int) -> list[tuple[int, float]]:
        others = [(token + rank * _RANKED) % len(self.tokenizer) for rank in range(1, count)]
        return [(t, self.voice.logprob(context, rank)) for rank, t in enumerate([token, *others], 1)]

    def _logprobs(self, choice: Choice, first: int, last: int) -> dict[str, Any] | None:
        count = self.asked.logprobs
        if count is None:
            return None
        pairs = list(zip(choice.tokens[first:last], choice.contexts[first:last], strict=True))
        if self.asked.chat:
            return {"content": [self._chat_logprob(token, context, count) for token, context in pairs]}
        body: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        offset = len(self.tokenizer.decode(choice.tokens[:first]))
        if first == 0 and self.asked.body.get("echo"):
            offset = self._add_prompt_logprobs(body, choice)
        for token, context in pairs:
            ranked = self._ranked(token, context, max(count, 1))
            offset = self._add_logprob(body, offset, token, ranked)
        return body

    def _add_prompt_logprobs(self, body: dict[str, Any], choice: Choice) -> int:
        offset = 0
        for position, token in enumerate(choice.prompt):
            ranked = self._ranked(token, mix(position), 1) if position else []
            offset = self._add_logprob(body, offset, token, ranked)
        return offset

    def _add_logprob(
        self, body: dict[str, Any], offset: int, token: int, ranked: list[tuple[int, float]]
    ) -> int:
        text = self.tokenizer.decode([token])
        body["text_offset"].append(offset)
        body["token_logprobs"].append(ranked[0][1] if ranked else None)
        body["tokens"].append(text)
        body["top_logprobs"].append({self.tokenizer.decode([t]): p for t, p in ranked} or None)
        return offset + len(text)

    def _chat_logprob(self, token: int, context: int, count: int) -> dict[str, Any]:
        ranked = self._ranked(token, context, max(count, 1))
        entries = [self._entry(t, p) for t, p in ranked]
        return {**entries[0], "top_logprobs": entries if count else []}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _prompt_logprobs(self, choice: Choice) -> list[Any] | None:
        if self.asked.prompt_logprobs is None:
            return None
        positions: list[Any] = [None]
        for position, token in enumerate(choice.prompt[1:], 1):
            ranked = self._ranked(token, mix(position), max(self.asked.prompt_logprobs, 1))
            positions.append(
                {
                    str(t): {"logprob": p, "rank": rank, "decoded_token": self.tokenizer.decode([t])}
                    for rank, (t, p) in enumerate(ranked, 1)
                }
            )
        return positions
