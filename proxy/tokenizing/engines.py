"""Token ids come from an engine that serves the model, or they are unknown: never from a guess, never late."""

import asyncio
import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from kvevents.block_keys import Prompt
from proxy.errors import LegError
from proxy.generation import GenerationRequest
from proxy.headers import Headers
from proxy.instances import Fleet
from proxy.tokenizing.fields import Ask, Given, Unknowable, what_to_tokenize

DEADLINE_S = 2.0
"""Longer than the 0.3 s an engine takes for 128k tokens, and short enough to go on without."""

CACHE_BYTES = 64 << 20
DISTRUST_S = 600.0
"""How long a kind of request stays unknown after an engine counted its prompt otherwise: long enough not to
route by a wrong count, short enough that a passing cause (an engine replaced in between) heals."""


class Tokenized(msgspec.Struct, frozen=True):
    """The prompt of a request as the engines see it, or why it is not known."""

    prompt: Prompt | None
    kind: str
    why_unknown: str | None = None


class Engines(Protocol):
    """The part of the engine client needed here."""

    async def post_json(
        self, instance: str, path: str, body: bytes, timeout_s: float, headers: Headers | None = None
    ) -> Any:
        """Ask an engine; raises LegError."""
        ...


class EngineTokenizer:
    """Asks the engines in turn, remembers what they said."""

    def __init__(
        self, fleet: Fleet, engines: Engines, *, clock: Callable[[], float], deadline_s: float = DEADLINE_S
    ) -> None:
        self._fleet = fleet
        self._engines = engines
        self._clock = clock
        self._deadline_s = deadline_s
        self._turn = 0
        self._known: OrderedDict[bytes, Sequence[int]] = OrderedDict()
        self._known_bytes = 0
        self._distrusted_until: dict[str, float] = {}

    async def tokenize(self, request: GenerationRequest, headers: Headers) -> Tokenized:
        """The request's prompt; `headers` are what a leg of it would carry. Raises nothing."""
        how = what_to_tokenize(request)
        if isinstance(how, Unknowable):
            return Tokenized(None, how.kind, how.why)
        if self._distrusted_until.get(how.kind, 0.0) > self._clock():
            return Tokenized(None, how.kind, "counted differently")
        token_ids = how.token_ids if isinstance(how, Given) else await self._ask(how, request.model, headers)
        if token_ids is None:
            return Tokenized(None, how.kind, "no answer")
        if len(token_ids) > self._fleet.max_model_len:
            return Tokenized(None, how.kind, "too long")  # engines refuse it; not worth any work here
        salt = request.body.value("cache_salt")
        if salt is not None and not isinstance(salt, str):
            return Tokenized(None, how.kind, "malformed")
        lora_name = request.model if self._fleet.is_adapter(request.model) else None
        return Tokenized(Prompt(token_ids=token_ids, lora_name=lora_name, cache_salt=salt), how.kind)

    def distrust(self, kind: str) -> None:
        """An engine counted a prompt of this kind otherwise: do not claim to know such prompts for a while."""
        self._distrusted_until[kind] = self._clock() + DISTRUST_S
        self._known.clear()
        self._known_bytes = 0

    async def _ask(self, how: Ask, model: str, headers: Headers) -> Sequence[int] | None:
        key = hashlib.blake2b(how.body, digest_size=16).digest()
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        authorization = [(name, value) for name, value in headers if name.lower() == "authorization"]
        serving = [i for i in self._fleet if i.why_unusable(model) is None]
        usable = [i.address for i in serving if not i.breaker.doubtful] or [i.address for i in serving]
        self._turn += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                for offset in range(min(2, len(usable))):
                    instance = usable[(self._turn + offset) % len(usable)]
                    try:
                        answer = await self._engines.post_json(
                            instance, "/tokenize", how.body, self._deadline_s, authorization
                        )
                        token_ids = array("I", answer["tokens"])
                    except (LegError, KeyError, TypeError, ValueError, OverflowError):
                        continue
                    self._remember(key, token_ids)
                    return token_ids
        except TimeoutError:
            pass
        return None

    def _remember(self, key: bytes, token_ids: "array[int]") -> None:
        if (before := self._known.pop(key, None)) is not None:  # asked twice at once
            self._known_bytes -= _size(before)
        self._known[key] = token_ids
        self._known_bytes += _size(token_ids)
        while self._known_bytes > CACHE_BYTES:
            _, oldest = self._known.popitem(last=False)
            self._known_bytes -= _size(oldest)


def _size(token_ids: Sequence[int]) -> int:
    return 4 * len(token_ids) + 200  # the ids, and about what a dict entry with its key takes
