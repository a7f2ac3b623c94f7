"""Prompts that differ: the same seed gives the same words on every machine."""

import random

_WORDS = [
    "the",
    "import",
    "statement",
    "loads",
    "a",
    "module",
    "and",
    "every",
    "function",
    "in",
    "the",
    "class",
    "body",
    "returns",
    "some",
    "value",
    "when",
    "that",
    "list",
    "of",
    "items",
    "is",
    "sorted",
    "by",
    "key",
    "or",
    "file",
    "path",
]


def prose(words: int, seed: int | str) -> str:
    """Return `words` words chosen by `seed`; about one token each for the tiny model."""
    chosen = random.Random(seed)  # noqa: S311  # repeatable on purpose
    return " ".join(chosen.choice(_WORDS) for _ in range(words))
