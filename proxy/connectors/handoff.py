"""What a prefill engine answers that others need: read once, and handed on word for word."""

import msgspec

from proxy.request.dialects import Usage

MAX_PARAMS_BYTES = 4 << 20
"""Of one prefill answer's `kv_transfer_params`: a million tokens in blocks of 16 take half a MB for each
cache group. Reading more would hold up the event loop for more than 50 ms."""


_PARAMS_BYTES = 1 << 20
_PARAMS_PER_BYTE = 8  # of a request, whose tokens take four bytes or more: 32 for each


def max_answer_bytes(asked_bytes: int) -> int:
    """How long the answer of a prefill leg may be: one token, and the params for a prompt in so many bytes.

    They are held until the blocks are fetched, so a short prompt cannot have long ones.
    """
    return min(_PARAMS_BYTES + _PARAMS_PER_BYTE * asked_bytes, MAX_PARAMS_BYTES) + (64 << 10)


class Handoff(msgspec.Struct, frozen=True):
    """What a prefill engine answered that the decode leg and the accounts need."""

    params: msgspec.Raw | None
    """The answer's `kv_transfer_params`, word for word, members that kvproxy does not know included: what
    newer engines tell each other. None where the connector moves KV without them."""
    prompt_tokens: int | None
    """The prompt's length as the engine counted it."""
    cached_tokens: int | None
    """How much of it the prefill engine had cached; None if it does not report."""
    engine_id: str | None
    """The engine process's own identity; another one means another process."""


class _Params(msgspec.Struct):
    remote_engine_id: str | None = None
    remote_prefill_cached_tokens: int | None = None


class _Answer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")


_NULL = msgspec.Raw(b"null")
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_params = msgspec.json.Decoder(_Params).decode


def read_params(answer: bytes, usage: Usage) -> Handoff:
    """What the params of a prefill answer tell beside its usage. Raises ValueError if it is not such an
    answer.
    """
    try:
        raw = _decode_answer(answer).kv_transfer_params
        params = raw if raw != _NULL else None
        if params is not None and len(memoryview(params)) > MAX_PARAMS_BYTES:
            raise ValueError(
                f"the prefill answer has kv_transfer_params of more than {MAX_PARAMS_BYTES} bytes"
            )
        known = _decode_params(params) if params is not None else _Params()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the prefill answer cannot be read: {error}") from None
    cached = known.remote_prefill_cached_tokens
    if cached is None:
        cached = usage.cached_tokens
    if (cached or 0) < 0:
        raise ValueError("the prefill answer counts fewer than 0 tokens")
    return Handoff(
        params=msgspec.Raw(bytes(params)) if params is not None else None,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=cached,
        engine_id=known.remote_engine_id,
    )
