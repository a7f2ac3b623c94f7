"""Prompts nobody else asks: of a known number of tokens, the same for a stand-in and a real engine."""

import random
from typing import Any

from scripts.workshop.live.words import prose

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0}
_FIRST, _LAST = 300, 4000  # no special tokens, all in the vocabulary


def token_ids(count: int, seed: str) -> list[int]:
    """`count` tokens chosen by `seed`."""
    chosen = random.Random(seed)
    return [chosen.randint(_FIRST, _LAST) for _ in range(count)]


def ids(count: int, seed: str, max_tokens: int = 1, /, **fields: Any) -> dict[str, Any]:
    """A completion request with a prompt of `count` tokens that runs to its limit."""
    return GREEDY | {"prompt": token_ids(count, seed), "max_tokens": max_tokens, "ignore_eos": True} | fields


def text(seed: str, max_tokens: int = 4, /, **fields: Any) -> dict[str, Any]:
    """A completion request with a prompt of about 30 tokens that runs to its limit."""
    return GREEDY | {"prompt": prose(30, seed), "max_tokens": max_tokens, "ignore_eos": True} | fields


def chat(seed: str, max_tokens: int = 4, /, **fields: Any) -> dict[str, Any]:
    """A chat request with one message that runs to its limit."""
    messages = [{"role": "user", "content": prose(30, seed)}]
    return GREEDY | {"messages": messages, "max_tokens": max_tokens, "ignore_eos": True} | fields
