"""The number of generated tokens is read from an answer, or from the end of a stream, that has a usage."""

import pytest

from proxy.edge.routes.story import answer_tokens, streamed_tokens
from proxy.request.dialects import CHAT, COMPLETIONS
from proxy.serving.learning import MAX_READ_BYTES

TOLD = b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}'
UNTOLD = b'{"choices": [{"text": "x"}], "usage": null}'
DONE = b"[DONE]"


def run(*events: bytes) -> bytes:
    return b"".join(b"data: %s\n\n" % data for data in events)


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (TOLD, 5),
        (UNTOLD, None),
        (b'{"choices": []}', None),
        (b'{"usage": {"completion_tokens": "five"}}', None),
        (b'{"usage": {"prompt_tokens": "three", "completion_tokens": 5}}', None),
        (b'{"usage": ', None),
        (b'{"usage": {"completion_tokens": 5}}' + b" " * MAX_READ_BYTES, None),
    ],
)
def test_of_an_answer(answer: bytes, tokens: int | None) -> None:
    assert answer_tokens(COMPLETIONS, answer) == tokens


@pytest.mark.parametrize(
    ("runs", "tokens"),
    [
        ((run(UNTOLD, TOLD, DONE),), 5),
        ((run(UNTOLD, TOLD), run(DONE)), 5),
        ((run(TOLD), b": it lives\n\n" + run(DONE)), 5),
        ((run(UNTOLD), run(UNTOLD, DONE)), None),
        ((run(b'{"usage": {"completion_tokens": 4}}'), run(TOLD, DONE)), 5),
        ((b"", b""), None),
    ],
)
def test_of_the_end_of_a_stream(runs: tuple[bytes, ...], tokens: int | None) -> None:
    assert streamed_tokens(CHAT, *runs) == tokens
