"""An engine's `/tokenize` gives a prompt's token ids, by the engine's own tokenizer and chat template."""

from array import array

import msgspec

from proxy.errors import BadRequestError, LegBrokenError
from proxy.headers import Headers
from proxy.request.body import Body, Encoded
from proxy.request.json_pieces import lists_of_numbers
from proxy.request.outline import LARGE_BODY_BYTES, outline
from proxy.upstream.engine_api.asking import Asker, UnreadableError

TOKENIZE = "/tokenize"

_REFUSED = frozenset({400, 422, 500})
"""The statuses with which vLLM refuses a question that its template cannot render; 500 in older releases."""

_NO_ROUTE = frozenset({404, 405, 501})


class NotServedError(LegBrokenError):
    """The engine has no `/tokenize`. vLLM's 404 for an unknown model, which holds an `error`, is not this."""


async def tokenize(
    engines: Asker,
    instance: str,
    question: Encoded,
    timeout_s: float,
    headers: Headers | None = None,
    *,
    max_bytes: int | None = None,
) -> bytes | None:
    """The answer to a `/tokenize` question, for `read_tokens`; None if the engine refuses the question.

    Raises NotServedError if the engine has no such route, other LegErrors if there is no answer or it is
    longer than `max_bytes`.
    """
    status, data = await engines.exchange(
        "POST", instance, TOKENIZE, question, timeout_s, headers, max_bytes=max_bytes
    )
    if status in _REFUSED:
        return None
    if status in _NO_ROUTE and b'"error"' not in data:
        raise NotServedError(instance, f"it has no {TOKENIZE} (status {status})")
    if status != 200:
        raise LegBrokenError(instance, f"status {status} for {TOKENIZE}")
    return data


class _Answer(msgspec.Struct):
    tokens: list[int]


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_tokens = msgspec.json.Decoder(list[int]).decode


def read_tokens(answer: bytes) -> "array[int]":
    """The token ids in an answer. A long answer is read a part at a time, so that other threads get turns.

    Raises UnreadableError if it is no such answer.
    """
    try:
        return _read(answer)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError, BadRequestError):
        raise UnreadableError(f"its answer to {TOKENIZE} is not what vLLM answers") from None


def _read(answer: bytes) -> "array[int]":
    if len(answer) <= LARGE_BODY_BYTES:
        return array("I", _decode_answer(answer).tokens)
    tokens = Body.of_outline(answer, outline(answer)).view("tokens")
    found = array("I")
    for part in lists_of_numbers(tokens if tokens is not None else memoryview(b"")):
        found.extend(_decode_tokens(part))
    return found
