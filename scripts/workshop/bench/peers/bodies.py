"""What is asked: bodies of a given size in groups whose prompts begin alike, each with a place for a number
that no two requests share.
"""

import json
import pathlib
import random
from collections.abc import Sequence
from typing import NamedTuple

from scripts.workshop.bench.peers.routers import MODEL

GROUPS = 16
SHARED = 0.75
"""Of a prompt; what differs comes behind."""
NUMBER = "0" * 17
NUMBER_IDS = "10000,10000,10000"
"""Token ids in the number's place; both as `unlike` of c/loadgen.c writes them."""
_WORDS = """
    the model prefill decode token cache request of and a street evening river compute latency to in window
    answer question because however transformer value key 1984 result is was before
"""
_CHARS_OF_ID = len("12345,")


class Asked(NamedTuple):
    """Besides the prompt."""

    max_tokens: int = 16
    """Chunks, if streamed."""
    stream: bool = False
    interval_us: int = 0
    """Between two chunks: the backend reads it from `seed`, which every router passes on."""


class Body(NamedTuple):
    """One that is sent many times."""

    data: bytes
    number_at: int


def chats(size: int, asked: Asked) -> list[Body]:
    """Chats of about so many bytes."""
    rng = random.Random(1)  # noqa: S311  # the same texts in every run
    frame = len(_chat("", asked))
    return [_marked(_chat(text, asked), NUMBER) for text in _texts(rng, size - frame)]


def write(bodies: Sequence[Body], file: pathlib.Path) -> None:
    """As c/loadgen.c reads them."""
    file.write_bytes(b"".join(b"%d %d\n%b" % (len(b.data), b.number_at, b.data) for b in bodies))


def _texts(rng: random.Random, size: int) -> list[str]:
    before = round(size * SHARED)
    return [
        f"{_prose(rng, before)} {NUMBER} {_prose(rng, size - before - len(NUMBER) - 2)}"
        for _ in range(GROUPS)
    ]


def _prose(rng: random.Random, size: int) -> str:
    words = rng.choices(_WORDS.split(), k=size // 3 + 1)
    return " ".join(words)[: max(0, size)]


def _chat(text: str, asked: Asked) -> str:
    system = {"role": "system", "content": "You are a helpful assistant."}
    return json.dumps(_head(asked) | {"messages": [system, {"role": "user", "content": text}]})


def _head(asked: Asked) -> dict[str, object]:
    return {
        "model": MODEL,
        "stream": asked.stream,
        "max_tokens": asked.max_tokens,
        "seed": asked.interval_us,
        "temperature": 0.7,
    }


def _marked(text: str, number: str) -> Body:
    return Body(text.encode(), text.index(number))
