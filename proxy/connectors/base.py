"""What a connector is: how one request becomes the bodies of its legs, and nothing about sending them."""

from typing import Protocol

import msgspec

from kvevents import REPORT_SESSION
from proxy.request.body import Body, Encoded

MAX_PARAMS_BYTES = 4 << 20
"""Of one prefill answer's `kv_transfer_params`: a million tokens in blocks of 16 take half a MB for each cache group.
Reading more would hold up the event loop for more than 50 ms."""


_PARAMS_BYTES = 1 << 20
_PARAMS_PER_BYTE = 8  # of a request, whose tokens take four bytes or more: 32 for each


def most_answer_bytes(asked_bytes: int) -> int:
    """How long the answer of a prefill leg may be: one token, and the params for a prompt in so many bytes.

    They are held until the blocks are fetched, so a short prompt cannot have long ones.
    """
    return min(_PARAMS_BYTES + _PARAMS_PER_BYTE * asked_bytes, MAX_PARAMS_BYTES) + (64 << 10)


class Handoff(msgspec.Struct, frozen=True):
    """What a prefill engine answered that the decode leg and the accounts need."""

    params: msgspec.Raw | None
    """The answer's `kv_transfer_params`, word for word, members that kvproxy does not know included: what newer engines
    tell each other. None where the connector moves KV without them."""
    prompt_tokens: int | None
    """The prompt's length as the engine counted it."""
    cached_tokens: int | None
    """How much of it the prefill engine had cached; None if it does not report."""
    engine_id: str | None
    """The engine process's own identity; another one means another process."""


class Connector(Protocol):
    """Pure: bodies in, bodies out."""

    name: str
    holds: bool
    """Whether a finished prefill leg leaves blocks held on the prefill instance until they are fetched."""

    def prefill_body(self, body: Body) -> Encoded:
        """The body of the prefill leg: the client's request for one token, not streamed."""
        ...

    def read_handoff(self, answer: bytes) -> Handoff:
        """Read the answer of a prefill leg. Raises ValueError if it does not hold what the decode leg needs."""
        ...

    def decode_body(self, body: Body, handoff: Handoff) -> Encoded:
        """The body of the decode leg: the client's request, and the way to its prefilled blocks."""
        ...

    def fetch_body(self, body: Body, handoff: Handoff) -> Encoded | None:
        """The body of a leg that only brings the blocks to the decode instance; None where nothing is handed over.

        It goes before the decode leg of a request for several sequences: each of them would fetch by itself what
        can be fetched once.
        """
        ...

    def release_body(self, handoff: Handoff) -> bytes | None:
        """The body (for `/v1/completions`) that makes a decode engine give a hold back; None without holds."""
        ...


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Params(msgspec.Struct):
    remote_engine_id: str | None = None
    remote_prefill_cached_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")


_NULL = msgspec.Raw(b"null")
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_params = msgspec.json.Decoder(_Params).decode


def one_token(body: Body) -> Body:
    """The request for its first token alone, as one unstreamed answer: what every prefill leg asks."""
    return body.changed(
        {"stream": False, "max_tokens": 1, "n": 1},
        drop=("stream_options", "max_completion_tokens", "min_tokens"),
    )


def asking_for_report(body: Body) -> Body | None:
    """The request, also asking the engine to tell of the cached blocks it reuses; None if that is not possible.

    The session id marks what is told (`kvevents.events.REPORT_SESSION`), so a client's own rules it out. vLLM takes
    any extra argument it does not know.
    """
    if body.gives("session_id"):
        return None
    try:
        given = _decode_xargs(body.view("vllm_xargs") or b"null") or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if "session_id" in given else body.changed({"vllm_xargs": given | _REPORT})


_decode_xargs = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_REPORT = {"kv_cache_report_mode": "full", "session_id": REPORT_SESSION}


def read_answer(answer: bytes) -> Handoff:
    """The parts of a prefill answer that connectors share. Raises ValueError if it is not such an answer."""
    try:
        read = _decode_answer(answer)
        params = read.kv_transfer_params if read.kv_transfer_params != _NULL else None
        if params is not None and len(memoryview(params)) > MAX_PARAMS_BYTES:
            raise ValueError(
                f"the prefill answer has kv_transfer_params of more than {MAX_PARAMS_BYTES} bytes"
            )
        known = _decode_params(params) if params is not None else _Params()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the prefill answer cannot be read: {error}") from None
    usage = read.usage or _Usage()
    cached = known.remote_prefill_cached_tokens
    if cached is None and usage.prompt_tokens_details is not None:
        cached = usage.prompt_tokens_details.cached_tokens
    if min(cached or 0, usage.prompt_tokens or 0) < 0:
        raise ValueError("the prefill answer counts fewer than 0 tokens")
    return Handoff(
        params=msgspec.Raw(bytes(params)) if params is not None else None,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=cached,
        engine_id=known.remote_engine_id,
    )
