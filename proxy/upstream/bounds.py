"""An engine's answer has a greatest length that is known before it arrives: by the path and length of the
question.

Pure. Each bound is many times what vLLM answers; a longer answer is not read to its end, and is an error.
"""

from collections.abc import Mapping

MAX_ANSWER_BYTES = 256 << 20
"""The longest unstreamed answer to a request, which is held whole: 128 choices of 8000 tokens each are below
10 MB of text, and log probabilities make that ten times as much."""

MAX_MODELS_BYTES = 2 << 20
"""The longest answer of `/v1/models`: 4000 adapters, for each of which vLLM 0.32 takes some 480 bytes."""

_KIB, _MIB = 1 << 10, 1 << 20

_OF_CONTROL: Mapping[str, int] = {
    "/health": 64 * _KIB,
    "/ping": 64 * _KIB,
    "/version": 64 * _KIB,
    "/is_sleeping": 64 * _KIB,
    "/v1/messages/count_tokens": 64 * _KIB,
    "/kv_event_sources": 256 * _KIB,  # some 130 bytes a rank
    "/v1/models": MAX_MODELS_BYTES,
    "/metrics": 8 * _MIB,  # some 60 KB a rank
    "/v1/load_lora_adapter": 64 * _KIB,
    "/v1/unload_lora_adapter": 64 * _KIB,
}

_TOKENIZE = "/tokenize"
_TOKENIZE_BYTES = _MIB  # what a template adds, and the places of images: 130 000 ids
_TOKENIZE_PER_BYTE = 16  # a token is a byte of text at least, and 8 bytes of an answer
_MAX_TOKENIZE_BYTES = 64 * _MIB

_ERROR_BYTES = _MIB
_ERROR_PER_BYTE = 4  # vLLM quotes what it refuses


def max_bytes(path: str, asked_bytes: int, status: int = 200) -> int:
    """How many bytes an answer with this status may have; `asked_bytes`: the length of the question."""
    if path in _OF_CONTROL:
        return _OF_CONTROL[path]
    most = MAX_ANSWER_BYTES
    if path == _TOKENIZE:
        most = min(_TOKENIZE_BYTES + _TOKENIZE_PER_BYTE * asked_bytes, _MAX_TOKENIZE_BYTES)
    if status >= 400:
        most = min(most, _ERROR_BYTES + _ERROR_PER_BYTE * asked_bytes)
    return most


def in_words(size_bytes: int) -> str:
    """A bound in words for people: `2 MiB`, `64 KiB`."""
    for unit, name in ((_MIB, "MiB"), (_KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} bytes"
