"""A probe is a prompt that was never sent before: random words from the first one on, so nothing of it is
cached.
"""

import random
import uuid
from typing import Any

WORDS = """
    amber anchor apple arrow autumn bamboo basket beacon birch bridge bronze button candle canyon carbon
    castle cedar
    cherry circle clover cobalt copper coral cotton crystal desert dragon eagle ember engine falcon feather
    forest
    garden ginger glacier granite harbor hazel island ivory jasmine jungle kernel ladder lantern lemon linen
    maple
    marble meadow meteor mirror needle ocean olive orchid oyster paper pebble pepper pillow planet pocket
    prairie
    quartz rabbit ribbon river rocket saddle salmon shadow silver spider spring summer tunnel turtle valley
    velvet
    violet walnut water willow window winter yellow zephyr
    """.split()  # noqa: SIM905  # as fields.py
"""Words that are one token for most tokenizers; each carries six random bits."""

MIN_WORDS = 24
"""The fewest words of a probe, whatever the block size: more than a hundred random bits that no other prompt
has."""


def random_text(words: int) -> str:
    """A text of `words` random words, `MIN_WORDS` at least."""
    dice = random.SystemRandom()
    return " ".join(dice.choice(WORDS) for _ in range(max(words, MIN_WORDS)))


def chat(model: str, text: str) -> dict[str, Any]:
    """The members of a chat that make its prompt."""
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def completion(model: str, prompt: Any) -> dict[str, Any]:
    """The members of a completion that make its prompt."""
    return {"model": model, "prompt": prompt}


def one_token(prompt: dict[str, Any]) -> dict[str, Any]:
    """The request with that prompt for one token, the same every time."""
    return prompt | {"max_tokens": 1, "temperature": 0}


def shuffled(token_ids: list[int]) -> list[int]:
    """The same tokens in an order that was never sent before."""
    mixed = list(token_ids)
    random.SystemRandom().shuffle(mixed)
    return mixed


def request_id() -> str:
    """A request id for a probe, by which an engine's log shows it."""
    return f"kvproxy-doctor-{uuid.uuid4().hex[:16]}"
