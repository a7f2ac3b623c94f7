"""Invariant: `/inference/v1/generate` takes token ids and vLLM's sampling parameters, and gives token ids.

Bodies and answers in the form of vLLM's classes.
"""

from dataclasses import dataclass
from typing import Any

from proxy.simulation.api.answers import Answers
from proxy.simulation.api.bodies import check_salt
from proxy.simulation.api.generation import Choice, Generation, Piece
from proxy.simulation.api.schema import (
    Problems,
    any_of,
    boolean,
    check,
    integer,
    list_of,
    mapping,
    nullable,
    number,
    problem,
    record,
    seed,
    string,
    values_of,
)

_SAMPLING = record(
    {
        "n": integer(),
        "presence_penalty": number,
        "frequency_penalty": number,
        "repetition_penalty": number,
        "temperature": number,
        "top_p": number,
        "top_k": integer(),
        "min_p": number,
        "seed": nullable(seed),
        "stop": nullable(any_of(string, list_of(string))),
        "stop_token_ids": nullable(list_of(integer())),
        "ignore_eos": boolean,
        "max_tokens": nullable(integer()),
        "min_tokens": integer(),
        "logprobs": nullable(integer()),
        "prompt_logprobs": nullable(integer()),
        "logit_bias": nullable(values_of(number)),
        "extra_args": nullable(mapping),
    }
)


def _ids(value: Any, loc: str, problems: Problems) -> Any:
    own: Problems = []
    ids = list_of(integer())(value, loc, own)
    if not own and not ids:
        told = {"field_type": "List", "min_length": 1, "actual_length": 0}
        words = "List should have at least 1 item after validation, not 0"
        own.append(problem("too_short", loc, words, value, **told))
    elif not own and min(ids) < 0:
        words = "token_ids must not contain negative values"
        own.append(problem("value_error", loc, f"Value error, {words}", value, error=ValueError(words)))
    problems.extend(own)
    return ids


_GENERATE = record(
    {
        "request_id": string,
        "token_ids": _ids,
        "sampling_params": _SAMPLING,
        "model": nullable(string),
        "return_token_ids": nullable(boolean),
        "stream": nullable(boolean),
        "stream_options": nullable(
            record({"include_usage": nullable(boolean), "continuous_usage_stats": nullable(boolean)})
        ),
        "cache_salt": nullable(string),
        "priority": integer(),
        "kv_transfer_params": nullable(mapping),
    },
    required=("token_ids", "sampling_params"),
)


def parse_generate(body: Any) -> dict[str, Any]:
    """The completion that is asked for. Raises BadRequestError, which has no effect on a hold."""
    if isinstance(body, dict):
        check_salt(body.get("cache_salt"))
    asked = check(body, _GENERATE)
    same = ("model", "stream", "stream_options", "cache_salt", "priority", "kv_transfer_params", "request_id")
    completion = {name: asked[name] for name in same if name in asked}
    sampling = {**asked["sampling_params"]}
    extra = sampling.pop("extra_args", None) or {}
    if "kv_transfer_params" in extra:
        completion.setdefault("kv_transfer_params", extra["kv_transfer_params"])
    if asked.get("return_token_ids"):
        completion["return_token_ids"] = True
    return sampling | completion | {"token_ids": asked["token_ids"]}


@dataclass(frozen=True, slots=True)
class TokenIds(Answers):
    """The words of one answer in token ids."""

    def whole(self, generation: Generation) -> dict[str, Any]:
        """As `Answers`."""
        choices = generation.choices
        usage = self._counts(choices)
        details = {"cached_tokens": self._details(choices[-1])["cached_tokens"]} | dict.fromkeys(
            ("created_cache_tokens", "multimodal_tokens")
        )
        usage |= {
            "prompt_tokens_details": details if self.prompt_details else None,
            "completion_tokens_details": None,
        }
        return {
            "request_id": self.id,
            "model": self.asked.model,
            "created": self.created,
            "usage": usage,
            "prompt_logprobs": self._prompt_logprobs(choices[0]),
            "prompt_token_id_logprobs": None,
            "prompt_token_ids": self._prompt_ids(choices[0]),
            "mm_placeholders": None,
            "metrics": None,
            "kv_transfer_params": choices[0].params,
            "ec_transfer_params": None,
            "output_mode": "tokens",
            "choices": [self._entry_of(choice, choice.tokens, 0, choice.finish_reason) for choice in choices],
        }

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """As `Answers`."""
        before = piece.generated - len(piece.tokens)
        entry = self._entry_of(piece.choice, piece.tokens, before, piece.finish_reason)
        chunk: dict[str, Any] = {"request_id": self.id, "usage": None}
        if self._continuous():
            chunk["usage"] = self._running_usage(piece.choice, piece.generated) | {
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            }
        if not before and piece.choice.index == 0 and self.asked.body.get("return_token_ids"):
            chunk["prompt_token_ids"] = self._prompt_ids(piece.choice)
        return chunk | {"output_mode": "tokens", "choices": [entry]}

    def closing(self, generation: Generation) -> list[dict[str, Any]]:
        """As `Answers`."""
        if not self._includes_usage():
            return []
        usage = self._counts(generation.choices)
        if self.prompt_details:
            cached = self._details(generation.choices[-1])["cached_tokens"]
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return [{"request_id": self.id, "usage": usage, "output_mode": "tokens", "choices": []}]

    def _prompt_ids(self, choice: Choice) -> list[int] | None:
        return list(choice.prompt) if self.asked.body.get("return_token_ids") else None

    def _entry_of(
        self, choice: Choice, tokens: Any, before: int, finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "finish_reason": finish_reason,
            "stop_reason": choice.stop_reason if finish_reason is not None else None,
            "token_ids": list(tokens),
            "routed_experts": None,
            "sampling_mask": None,
            "weight_versions": None,
            "logprobs": self._logprobs_of_ids(choice, before, before + len(tokens)),
        }

    def _logprobs_of_ids(self, choice: Choice, first: int, last: int) -> dict[str, Any] | None:
        count = self.asked.logprobs
        if count is None:
            return None
        content = []
        for token, context in zip(choice.tokens[first:last], choice.contexts[first:last], strict=True):
            ranked = self._ranked(token, context, max(count, 1))
            told = [
                {"token_id": each, "logprob": logprob, "rank": rank}
                for rank, (each, logprob) in enumerate(ranked, 1)
            ]
            content.append({**told[0], "top_logprobs": told if count else []})
        return {"content": content}
