"""What clients ask: chats, also as responses and messages, and completions, streamed or not, that share
prefixes; and how each client behaves.

Pure and seeded: the same seed asks the same questions in the same order for each client.
"""

import enum
import random
from dataclasses import dataclass
from typing import Any

from scripts.workshop.live.asking import CHAT, COMPLETIONS
from scripts.workshop.live.words import prose
from tests.proofs.texts import RightAnswers

SHARED_PREFIXES = 12
SHARED_WORDS = (60, 400)
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
INVOCATIONS = "/invocations"
"""One engine answers it whole, with what it would answer on the body's own route."""
WHOLE_SHARE = 0.06


class Manner(enum.StrEnum):
    """How a client takes its answer."""

    READS = "reads"
    READS_SLOWLY = "reads slowly"
    LEAVES = "leaves"


@dataclass(frozen=True)
class Plan:
    """One request and what its client will do."""

    id: str
    path: str
    body: dict[str, Any]
    expected: tuple[str, ...]
    manner: Manner
    prompt_tokens: int = 0
    leaves_after_s: float = 0.0

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


class Workload:
    """The requests of one client, named so, one after the other."""

    def __init__(self, client: str, seed: int, model: str, right: RightAnswers, *, disloyal: bool) -> None:
        """`disloyal`: some requests are left or read slowly."""
        self._client = client
        self._model = model
        self._right = right
        self._disloyal = disloyal
        self._number = 0
        self._random = random.Random(f"{seed}/{client}")  # repeatable on purpose
        shared = random.Random(f"{seed}/shared")  # as above
        self._prefixes = [
            prose(shared.randint(*SHARED_WORDS), f"{seed}/prefix/{n}") for n in range(SHARED_PREFIXES)
        ]

    def pause_s(self, mean_s: float) -> float:
        """How long the client thinks before its next request."""
        return self._random.expovariate(1 / mean_s) if mean_s else 0.0

    def next(self) -> Plan:
        dice = self._random
        self._number += 1
        manner = Manner.READS
        if self._disloyal:
            manner = dice.choices(list(Manner), weights=(82, 6, 12))[0]
        stream = manner is Manner.READS_SLOWLY or dice.random() < 0.6
        limit = dice.randint(100, 250) if manner is Manner.READS_SLOWLY else dice.randint(4, 70)
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": limit,
            "temperature": 0,
            "ignore_eos": True,
        }
        prefix = dice.choice(self._prefixes) if dice.random() < 0.8 else ""
        words = prose(dice.randint(5, 120), f"{self._client}/{self._number}/{dice.random()}")
        if dice.random() < 0.5:
            path = CHAT
            system = [{"role": "system", "content": prefix}] if prefix else []
            body["messages"] = [*system, {"role": "user", "content": words}]
            path = dice.choices((CHAT, RESPONSES, MESSAGES), weights=(60, 20, 20))[0]
        else:
            path = COMPLETIONS
            body["prompt"] = f"{prefix} {words}"
        has_choices = path in {CHAT, COMPLETIONS}
        if has_choices and dice.random() < WHOLE_SHARE:
            path = INVOCATIONS
        if stream:
            body["stream"] = True
        elif has_choices and dice.random() < 0.1:
            body |= {"n": 2, "temperature": 1, "seed": dice.randint(1, 1 << 30)}
        return Plan(
            id=f"{self._client}-{self._number}",
            path=path,
            body=_worded(path, body),
            expected=self._right.of(body),
            manner=manner,
            prompt_tokens=self._right.prompt_tokens(body),
            leaves_after_s=dice.choice((0.02, 0.1, 0.3, 1.0, 2.0)) * dice.uniform(0.5, 1.5),
        )


def _worded(path: str, chat: dict[str, Any]) -> dict[str, Any]:
    """A chat as it is asked for on a path: what is right to answer is the same on each."""
    if path not in {RESPONSES, MESSAGES}:
        return chat
    *system, user = chat["messages"]
    response = path == RESPONSES
    body: dict[str, Any] = {name: chat[name] for name in ("model", "temperature", "stream") if name in chat}
    body["max_output_tokens" if response else "max_tokens"] = chat["max_tokens"]
    if system:
        body["instructions" if response else "system"] = system[0]["content"]
    return body | ({"input": user["content"]} if response else {"messages": [user]})
