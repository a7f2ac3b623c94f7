"""What is asked: bodies of a given size in groups whose prompts begin alike, each with a place for a number
that no two requests share.
"""

import itertools
import json
import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from proxy.tokenizing import LocalTokenizer
from scripts.workshop.bench.peers.routers import MODEL

NUMBER, OTHER_NUMBER = "0,0,0,0,0,0,0,0,0", "9,9,9,9,9,9,9,9,9"
"""A token each digit and each comma, whatever the tokenizer: prompts with different numbers are as long."""
NUMBER_IDS = "10000,10000,10000"
"""Token ids in the number's place; both forms as `unlike` of c/loadgen.c writes them."""
BLOCK = 16
"""Tokens of a block of the engines' caches."""
_LOWEST_ID, _HIGHEST_ID = 20_000, 99_999  # five digits each, and none that is part of a number
_WORDS = """
    the model prefill decode token cache request of and a street evening river compute latency to in window
    answer question because however transformer value key 1984 result is was before
"""


class Asked(NamedTuple):
    """How prompts are, and what else is asked."""

    size: int
    """Of a body, in bytes."""
    shared: float = 0.75
    """Of a prompt: what it has in common with others of its group, from its beginning."""
    groups: int = 16
    max_tokens: int = 16
    """Chunks, if streamed."""
    stream: bool = False
    interval_us: int = 0
    """Between two chunks: the backend reads it from `seed`, which every router passes on."""


class Body(NamedTuple):
    """One that is sent many times."""

    data: bytes
    number_at: int
    prefix: Sequence[int] = ()
    """Tokens of its prompt that the engines are to have: whole blocks. Empty if nobody asks."""


def chats(asked: Asked) -> Iterator[Body]:
    """Chats whose tokens nobody asks for."""
    for text in _texts(asked):
        yield _marked(_chat(text, asked), NUMBER)


def tokenized_chats(asked: Asked, tokenizer: LocalTokenizer) -> Iterator[Body]:
    """Chats whose tokens this tokenizer tells."""
    for text in _texts(asked):
        tokens, others = (_tokens(each, tokenizer) for each in (text, text.replace(NUMBER, OTHER_NUMBER)))
        pairs = zip(tokens, others, strict=True)
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        prefix = _blocks(tokens[:alike])
        yield _marked(_chat(text, asked, _told(len(tokens), len(prefix))), NUMBER, prefix)


def token_ids(asked: Asked) -> Iterator[Body]:
    """Completions whose prompts are token ids."""
    rng = random.Random(asked.size)  # noqa: S311  # the same in every run
    number = [int(token) for token in NUMBER_IDS.split(",")]
    count = (asked.size - len(_completion([], asked, _told(10_000, 10_000)))) // len("12345,")
    before = round(count * asked.shared)
    for _ in range(asked.groups):
        ids = [rng.randint(_LOWEST_ID, _HIGHEST_ID) for _ in range(count - len(number))]
        prefix = _blocks(ids[:before])
        prompt = [*ids[:before], *number, *ids[before:]]
        yield _marked(_completion(prompt, asked, _told(count, len(prefix))), NUMBER_IDS, prefix)


def write(bodies: Sequence[Body], file: pathlib.Path) -> None:
    """As c/loadgen.c reads them."""
    file.write_bytes(b"".join(b"%d %d\n%b" % (len(b.data), b.number_at, b.data) for b in bodies))


def _texts(asked: Asked) -> Iterator[str]:
    rng = random.Random(asked.size)  # noqa: S311  # the same texts in every run
    size = asked.size - len(_chat("", asked))
    before = round(size * asked.shared)
    for _ in range(asked.groups):
        yield f"{_prose(rng, before)} {NUMBER} {_prose(rng, size - before - len(NUMBER) - 2)}"


def _prose(rng: random.Random, size: int) -> str:
    words = rng.choices(_WORDS.split(), k=size // 3 + 1)
    return " ".join(words)[: max(0, size)]


def _tokens(text: str, tokenizer: LocalTokenizer) -> list[int]:
    found = tokenizer.answer_now(json.dumps({"model": MODEL, "messages": _messages(text)}).encode())
    if found is None:
        raise ValueError("the tokenizer leaves a plain chat to the engines")
    return found.tolist()


def _blocks(tokens: list[int]) -> list[int]:
    return tokens[: len(tokens) // BLOCK * BLOCK]


def _told(tokens: int, cached: int) -> dict[str, object]:
    """What the backend is to say of the prompt; `user` is a member that every router passes on."""
    return {"user": f"tokens={tokens} cached={cached}"}


def _chat(text: str, asked: Asked, told: dict[str, object] | None = None) -> str:
    return _json(_head(asked) | (told or {}) | {"messages": _messages(text)})


def _messages(text: str) -> list[dict[str, str]]:
    system = {"role": "system", "content": "You are a helpful assistant."}
    return [system, {"role": "user", "content": text}]


def _completion(prompt: list[int], asked: Asked, told: dict[str, object]) -> str:
    return _json(_head(asked) | told | {"prompt": prompt})


def _head(asked: Asked) -> dict[str, object]:
    return {
        "model": MODEL,
        "stream": asked.stream,
        "max_tokens": asked.max_tokens,
        "seed": asked.interval_us,
        "temperature": 0.7,
    }


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _marked(text: str, number: str, prefix: Sequence[int] = ()) -> Body:
    return Body(text.encode(), text.index(number), prefix)
