"""A probe is a prompt nobody has ever sent: random words from its first one on, so that it hits nothing."""

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
"""Words that most tokenizers know whole: six bits of chance each."""

MIN_WORDS = 24
"""At least so many words, whatever the block size: more than a hundred bits that no other prompt has."""


def random_text(words: int) -> str:
    """A text of `words` random words, `MIN_WORDS` at least."""
    dice = random.SystemRandom()
    return " ".join(dice.choice(WORDS) for _ in range(max(words, MIN_WORDS)))


def chat(model: str, text: str) -> dict[str, Any]:
    """What of a chat shapes its prompt."""
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def completion(model: str, prompt: Any) -> dict[str, Any]:
    """The same of a completion."""
    return {"model": model, "prompt": prompt}


def one_token(prompt: dict[str, Any]) -> dict[str, Any]:
    """The request for it: one token, the same every time."""
    return prompt | {"max_tokens": 1, "temperature": 0}


def shuffled(token_ids: list[int]) -> list[int]:
    """The same tokens as a prompt nobody has sent."""
    mixed = list(token_ids)
    random.SystemRandom().shuffle(mixed)
    return mixed


def request_id() -> str:
    """The request id of a probe, by which it is found in an engine's log."""
    return f"kvproxy-doctor-{uuid.uuid4().hex[:16]}"
