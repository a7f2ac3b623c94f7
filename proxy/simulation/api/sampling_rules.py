"""Invariant: what passes these rules can be sampled; what does not is refused in vLLM's order and words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.simulation.api.errors import BadRequestError
from proxy.simulation.engine.request import Sampling
from proxy.simulation.engine.text import mix

MAX_LOGPROBS = 20
MAX_TEMPERATURE = 2
MAX_N = 16384
_CERTAIN_BIAS = 50.0


def sampling_of(body: Mapping[str, Any], room: int, limit: int | None) -> Sampling:
    """How to sample; `room`: the tokens that the context has left, `limit`: those that were asked for."""
    max_tokens = room if limit is None else min(room, limit)
    if max_tokens < 1:
        raise BadRequestError.of(
            f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens
        )
    min_tokens = body.get("min_tokens") or 0
    if min_tokens < 0:
        raise BadRequestError(f"min_tokens must be greater than or equal to 0, got {min_tokens}.")
    if min_tokens > max_tokens:
        raise BadRequestError(
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
        )
    seed_value = body.get("seed")
    warm = body.get("temperature") != 0
    certain = [int(t) for t, bias in (body.get("logit_bias") or {}).items() if bias >= _CERTAIN_BIAS]
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=bool(body.get("ignore_eos")),
        stop_token_ids=tuple(body.get("stop_token_ids") or ()),
        allowed_token_ids=tuple(body.get("allowed_token_ids") or ()),
        favourite=certain[0] if certain else None,
        salt=mix(seed_value + 1) if warm and seed_value is not None else 0,
    )


def check_logprobs(what: str, name: str, count: int | None, vocabulary: int) -> None:
    """Refuse more log probabilities than are given; -1 asks for those of all tokens."""
    count = vocabulary if count == -1 else count
    if count is not None and count > MAX_LOGPROBS:
        message = f"Requested {what} of {count}, which is greater than max allowed: {MAX_LOGPROBS}"
        raise BadRequestError.of(message, name, count)


def check_tokens(body: Mapping[str, Any], size: int) -> None:
    """Refuse tokens that are not in the vocabulary of that size."""
    bias = body.get("logit_bias") or {}
    if odd := [key for key in bias if not key.lstrip("-").isdecimal()]:
        message = f"logit_bias contains key(s) that cannot be converted to integer token IDs: {odd}"
        raise BadRequestError.of(message, "logit_bias", odd)
    for name, tokens in (
        ("logit_bias", map(int, bias)),
        ("stop_token_ids", body.get("stop_token_ids") or ()),
    ):
        if outside := [token for token in tokens if not 0 <= token < size]:
            message = (
                f"token_id(s) {outside} in {name} contain out-of-vocab token ids. Vocabulary size: {size}"
            )
            raise BadRequestError.of(message, name, outside)
    allowed = body.get("allowed_token_ids")
    if allowed is not None and not allowed:
        message = "allowed_token_ids is not None and empty!"
        raise BadRequestError.of(message, "allowed_token_ids", allowed)
    if any(not 0 <= token < size for token in allowed or ()):
        message = "allowed_token_ids contains out-of-vocab token id!"
        raise BadRequestError.of(message, "allowed_token_ids", allowed)


def check_sampling(body: Mapping[str, Any], stop: Sequence[str], n: int) -> None:
    """Apply vLLM's rules for sampling parameters, in its order and words."""
    if n < 1:
        raise BadRequestError(f"n must be at least 1, got {n}.")
    if n > MAX_N:
        raise BadRequestError(
            f"n must be at most {MAX_N}, got {n}. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
            "environment variable."
        )
    for name in ("presence_penalty", "frequency_penalty"):
        value = body.get(name)
        if value is not None and not -2.0 <= value <= 2.0:
            raise BadRequestError(f"{name} must be in [-2, 2], got {value}.")
    repetition = body.get("repetition_penalty")
    if repetition is not None and repetition <= 0:
        raise BadRequestError(f"repetition_penalty must be greater than zero, got {repetition}.")
    temperature = body.get("temperature")
    if temperature is not None and (wrong := _wrong_temperature(temperature)):
        message = f"temperature must be {wrong}, got {temperature}."
        raise BadRequestError.of(message, "temperature", temperature)
    top_p = body.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise BadRequestError.of(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    top_k = body.get("top_k")
    if top_k is not None and top_k < -1:
        raise BadRequestError(f"top_k must be 0 (disable), or at least 1, got {top_k}.")
    min_p = body.get("min_p")
    if min_p is not None and not 0 <= min_p <= 1:
        raise BadRequestError(f"min_p must be in [0, 1], got {min_p}.")
    if any(not s for s in stop):
        raise BadRequestError("stop cannot contain an empty string.")
    if any(not word for word in body.get("bad_words") or ()):
        raise BadRequestError(f"bad_words cannot contain an empty string. Got bad_words={body['bad_words']}")
    if temperature == 0 and n > 1 and not body.get("use_beam_search"):
        raise BadRequestError(f"n must be 1 when using greedy sampling, got {n}.")


def _wrong_temperature(value: float) -> str | None:
    if not math.isfinite(value):
        return "a finite number"
    if value < 0:
        return "non-negative"
    return "in [0, 2]" if value > MAX_TEMPERATURE else None
