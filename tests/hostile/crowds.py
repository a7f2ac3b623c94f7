"""Attacks by many requests of which each may be served: what matters is how long somebody else's small one
takes."""

import asyncio
import random
import string
from collections.abc import Iterable

from tests.hostile.attacks import attack
from tests.hostile.target import AS_OPERATOR, Said, Target

EXPLAIN = "/explain"
"""Tokenizes and decides as for a request that is served, and asks nothing of engines, which would take turns
of their own."""

LONG_TEXTS, LONG_CHARACTERS = 40, 400_000
SHORT_TEXTS, SHORT_CHARACTERS = 10, 20_000
SHORT_WAITS_S = 1.0
"""As long may each of the short ones take beside the others; the long ones take several seconds together."""


def _question(characters: int, seed: int) -> Iterable[bytes]:
    """A prompt of which no piece is known."""
    rng = random.Random(seed)  # any letters will do
    words = ("".join(rng.choices(string.ascii_lowercase, k=7)) for _ in range(characters // 8))
    return [b'{"prompt": "', " ".join(words).encode(), b'"}']


@attack(repeats=False)
async def long_texts(target: Target) -> Said:
    """40 texts of 400 KB at once; meanwhile short ones, which are to be answered within a second."""
    bodies = [list(_question(LONG_CHARACTERS, seed)) for seed in range(LONG_TEXTS)]
    sent_bytes = sum(len(part) for body in bodies for part in body)
    async with asyncio.TaskGroup() as tasks:
        long = [
            tasks.create_task(target.post(EXPLAIN, body, head=AS_OPERATOR), name=f"text {number}")
            for number, body in enumerate(bodies)
        ]
        await asyncio.wait(long, return_when=asyncio.FIRST_COMPLETED)
        for seed in range(SHORT_TEXTS):
            short = _question(SHORT_CHARACTERS, LONG_TEXTS + seed)
            said = await target.post(EXPLAIN, short, SHORT_WAITS_S, AS_OPERATOR)
            if said.status != 200:
                break
    return Said(said.status, said.body, sent_bytes, LONG_TEXTS + SHORT_TEXTS, LONG_TEXTS + 1)
