"""What clients ask: everything that decides which blocks a prompt shares with others.

Pure and seeded: the same seed asks the same, as far as answers that become part of chats are the same.
"""

import enum
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from scripts.workshop.engines.engine import BLOCK_TOKENS
from scripts.workshop.live.asking import CHAT, COMPLETIONS
from scripts.workshop.live.words import prose

T = TypeVar("T")

MODEL = "tiny"
ADAPTER = "alpha"
MAX_MODEL_LEN = 2048

_PREFIXES = 10
_PREFIX_WORDS = (60, 350)
_POPULARITY = [1 / (n + 1) ** 1.5 for n in range(_PREFIXES)]
"""As Zipf found it, but steeper: the first ones never leave a cache, the last ones come and go."""
_TENANTS = 4
_CHAT_WORDS = 900  # then a new one begins; what the model said may have more tokens than were asked for
_LONG_WORDS = (700, 1400)
_FIRST_ID, _LAST_ID = 1000, 1999  # ordinary tokens of the tiny model and of the stand-in's
_EVEN_SHARE = 0.5
"""Of the prompts of token ids that end where a block ends: asked again, their last block is computed and
stored again."""
_REMEMBERED = 8
_LEFTOVERS: Mapping[str, Any] = {
    "reasoning": {"effort": "low"},
    "thinking": {"type": "enabled"},
    "enable_thinking": True,
    "usage": {"include": True},
    "guided_json": {"type": "object"},
    "num_ctx": 4096,
}
"""Members that clients and frameworks send and vLLM ignores."""
_LEFTOVERS_SHARE = 0.25
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Tells the {name} of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    for name in ("weather", "time")
]
_CHOICES: list[Any] = ["auto", "none", "required", {"type": "function", "function": {"name": "weather"}}]


class Kind(enum.StrEnum):
    """Kinds of requests."""

    CHAT = "chat"
    """The next turn of the client's conversation."""
    SHARED = "shared prefix"
    ADAPTER = "adapter"
    SALT = "salt"
    TOOLS = "tools"
    """A chat with tools and a choice of them."""
    IDS = "token ids"
    LONG = "long"
    """A document nobody else has: it pushes others out of the cache."""
    AGAIN = "again"
    """What the client asked before, word for word."""


MIXED: Mapping[Kind, int] = {
    Kind.CHAT: 28,
    Kind.SHARED: 20,
    Kind.TOOLS: 8,
    Kind.ADAPTER: 12,
    Kind.SALT: 10,
    Kind.IDS: 10,
    Kind.LONG: 4,
    Kind.AGAIN: 8,
}
PRESSURE: Mapping[Kind, int] = {**MIXED, Kind.LONG: 30}


@dataclass(frozen=True)
class Plan:
    """One request."""

    kind: Kind
    path: str
    body: dict[str, Any]

    @property
    def adapter(self) -> str | None:
        return ADAPTER if self.body["model"] == ADAPTER else None

    @property
    def salt(self) -> str | None:
        salt: str | None = self.body.get("cache_salt")
        return salt

    @property
    def odd(self) -> bool:
        """Whether it has members that no engine reads, or a choice of tools."""
        return not self.body.keys().isdisjoint({*_LEFTOVERS, "tool_choice"})


class Prompts:
    """The requests of one client, one after the other."""

    def __init__(self, client: str, seed: int) -> None:
        self._client = client
        self._number = 0
        self._random = random.Random(f"{seed}/{client}")  # repeatable on purpose
        shared = random.Random(f"{seed}/shared")  # as above
        self._prefixes = [
            prose(shared.randint(*_PREFIX_WORDS), f"{seed}/prefix/{n}") for n in range(_PREFIXES)
        ]
        self._id_prefixes = [
            [shared.randint(_FIRST_ID, _LAST_ID) for _ in range(shared.randint(*_PREFIX_WORDS))]
            for _ in range(_PREFIXES)
        ]
        self._chat: list[dict[str, str]] = []
        self._remembered: deque[Plan] = deque(maxlen=_REMEMBERED)

    def pause_s(self, mean_s: float) -> float:
        """How long the client thinks before its next request."""
        return self._random.expovariate(1 / mean_s) if mean_s else 0.0

    def next(self, mix: Mapping[Kind, int]) -> Plan:
        """The next request; tell `answered` what came of it."""
        dice = self._random
        self._number += 1
        [kind] = dice.choices(list(mix), weights=list(mix.values()))
        if kind is Kind.AGAIN and self._remembered:
            return Plan(kind, (plan := dice.choice(self._remembered)).path, plan.body)
        body: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": dice.randint(2, 20)}
        if dice.random() < 0.4:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        path = COMPLETIONS
        words = self._words(5, 60)
        match kind:
            case Kind.CHAT:
                path, body["messages"] = CHAT, self._turn(words)
            case Kind.TOOLS:
                path, body["messages"], body["tools"] = CHAT, self._system(words), _TOOLS
                body["tool_choice"] = dice.choice(_CHOICES)
            case Kind.IDS:
                own = [dice.randint(_FIRST_ID, _LAST_ID) for _ in range(dice.randint(1, 70))]
                ids = self._popular(self._id_prefixes) + own
                if dice.random() < _EVEN_SHARE:
                    ids = ids[: max(1, len(ids) // BLOCK_TOKENS) * BLOCK_TOKENS]
                body["prompt"] = ids
            case Kind.LONG:
                body["prompt"] = self._words(*_LONG_WORDS)
            case Kind.ADAPTER if dice.random() < 0.5:
                path, body["messages"] = CHAT, self._system(words)
            case _:
                body["prompt"] = f"{self._popular(self._prefixes)} {words}"
        if kind is Kind.ADAPTER:
            body["model"] = ADAPTER
        if kind is Kind.SALT or (kind is Kind.ADAPTER and dice.random() < 0.2):
            body["cache_salt"] = f"tenant-{dice.randrange(_TENANTS)}"
        if dice.random() < _LEFTOVERS_SHARE:
            body |= dict(dice.sample(list(_LEFTOVERS.items()), 2))
        plan = Plan(kind, path, body)
        if kind is not Kind.LONG:
            self._remembered.append(plan)
        return plan

    def hot(self) -> list[Plan]:
        """A prompt for each shared prefix, of the model, of the adapter and of each tenant."""
        usual = {"model": MODEL, "max_tokens": 1}
        texts = [f"{prefix} and" for prefix in self._prefixes]
        salts = [f"tenant-{n}" for n in range(_TENANTS)]
        return [
            *(Plan(Kind.SHARED, COMPLETIONS, usual | {"prompt": text}) for text in texts),
            *(
                Plan(Kind.IDS, COMPLETIONS, usual | {"prompt": [*ids, _FIRST_ID]})
                for ids in self._id_prefixes
            ),
            *(Plan(Kind.ADAPTER, COMPLETIONS, usual | {"prompt": text, "model": ADAPTER}) for text in texts),
            *(
                Plan(Kind.SALT, COMPLETIONS, usual | {"prompt": texts[0], "cache_salt": salt})
                for salt in salts
            ),
        ]

    def answered(self, plan: Plan, text: str) -> None:
        """What the model said goes on in a chat."""
        if plan.kind is Kind.CHAT:
            self._chat.append({"role": "assistant", "content": text})

    def failed(self, plan: Plan) -> None:
        """The client begins another conversation."""
        if plan.kind is Kind.CHAT:
            self._chat = []

    def _turn(self, words: str) -> list[dict[str, str]]:
        if sum(len(message["content"].split()) for message in self._chat) > _CHAT_WORDS:
            self._chat = []
        if not self._chat:
            self._chat = self._system(words)
        else:
            self._chat.append({"role": "user", "content": words})
        return list(self._chat)

    def _system(self, words: str) -> list[dict[str, str]]:
        system = self._popular(self._prefixes)
        return [{"role": "system", "content": system}, {"role": "user", "content": words}]

    def _popular(self, prefixes: list[T]) -> T:
        [chosen] = self._random.choices(prefixes, weights=_POPULARITY)
        return chosen

    def _words(self, least: int, most: int) -> str:
        return prose(self._random.randint(least, most), f"{self._client}/{self._number}")
