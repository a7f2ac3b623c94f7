"""What a prefill engine answers for others is read once, and handed on word for word."""

import msgspec

from proxy.request.dialects import Usage

MAX_PARAMS_BYTES = 4 << 20
"""The largest `kv_transfer_params` of a prefill answer: those of a million tokens in blocks of 16 have half a
MB for each cache group. To read more would hold up the event loop for more than 50 ms."""


_PARAMS_BYTES = 1 << 20
_PARAMS_PER_BYTE = 8  # for each byte of a request; a token takes four bytes or more, so it has 32


def max_answer_bytes(asked_bytes: int) -> int:
    """The largest answer of a prefill leg: one token, and the params for a prompt in `asked_bytes` bytes.

    Params are kept until the blocks are fetched, so a short prompt cannot have long ones.
    """
    return min(_PARAMS_BYTES + _PARAMS_PER_BYTE * asked_bytes, MAX_PARAMS_BYTES) + (64 << 10)


class Handoff(msgspec.Struct, frozen=True):
    """What a prefill engine answered for the decode leg, and for metrics."""

    params: msgspec.Raw | None
    """The answer's `kv_transfer_params`, word for word, with members that kvproxy does not know: newer
    engines may need them. None where the connector moves KV without them."""
    prompt_tokens: int | None
    """The prompt's length as the engine counted it."""
    cached_tokens: int | None
    """The tokens of the prompt that the prefill engine had cached; None if it does not report."""
    engine_id: str | None
    """The identity of the engine process; another identity means another process."""


class _Params(msgspec.Struct):
    remote_engine_id: str | None = None
    remote_prefill_cached_tokens: int | None = None


class _Answer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")


_NULL = msgspec.Raw(b"null")
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_params = msgspec.json.Decoder(_Params).decode


def read_params(answer: bytes, usage: Usage) -> Handoff:
    """The params of a prefill answer, with its usage. Raises ValueError if it is no such answer."""
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
