"""A question is put to engines once: there is no guess, and no answer after the deadline.

A request with the same question waits for the same answer, and answers are remembered.
"""

import asyncio
import contextlib
import hashlib
import math
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from proxy.errors import LegError
from proxy.fair_queue import ANONYMOUS
from proxy.fleet import Fleet
from proxy.headers import Headers
from proxy.request.body import Encoded, Pieces
from proxy.request.outline import LARGE_BODY_BYTES
from proxy.tasks import TaskOwner
from proxy.tokenizing.slots import FairSlots
from proxy.upstream.engine_api.asking import Asker, UnreadableError
from proxy.upstream.engine_api.tokens import NotServedError, read_tokens, tokenize

DEADLINE_S = 2.0
"""Seconds for an answer: more than the 0.3 s that an engine takes for 128k tokens, and few enough to go on
without."""

REMEMBERED_S = 3600.0
"""The most seconds for which an answer is taken to be right: chat templates may give the date."""

CACHE_BYTES = 16 << 20
"""The bytes of remembered answers: four million tokens. It is for prompts that are asked for again without a
change, by a retry or /explain; growing chats never are."""

LONG_BYTES = 64 << 10
"""Questions above this size wait for each other here, rather than in an engine, where short ones would wait
behind them: vLLM tokenizes one question after the other, in one thread, 64 KiB in 20 ms or so."""

LACKING_S = 60.0
"""Seconds after which an engine without `/tokenize` is asked again: it may be another engine by then."""


T = TypeVar("T")

_ANSWER_BYTES, _BYTES_A_TOKEN = 64 << 10, 12


class EngineTokenizer:
    """Asks the engines in turn, and remembers their answers."""

    def __init__(
        self,
        fleet: Fleet,
        engines: Asker,
        tasks: TaskOwner,
        *,
        deadline_s: float = DEADLINE_S,
        reader: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reader`: reads long questions and answers; None: the loop's own threads do."""
        self._clock = clock
        self._lacking: dict[str, float] = {}
        """The engines that have no `/tokenize`, each with the time at which that was found."""
        self._reader = reader
        self._fleet = fleet
        self._engines = engines
        self._tasks = tasks
        self._deadline_s = deadline_s
        self._turn = 0
        self._long = FairSlots()
        self._asking: dict[bytes, asyncio.Task[array[int] | None]] = {}
        self._known: OrderedDict[bytes, array[int]] = OrderedDict()
        self.held_bytes = 0

    async def answer(
        self, question: Encoded, model: str, headers: Headers, client: str = ANONYMOUS
    ) -> "array[int] | None":
        """The token ids for a client's `/tokenize` question; None if no engine answers in time."""
        if not self._able(model):
            return None
        # A template may give the date, by the engine's clock.
        hour = int(time.time() // REMEMBERED_S)
        key = await self._read(len(question), _key, question, hour)
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        asking = self._asking.get(key)
        if asking is None:
            asking = self._tasks.create(self._ask(key, question, model, headers, client), name="ask")
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        # A caller that leaves does not cancel the answer for the others.
        return await asyncio.shield(asking)

    def forget(self) -> None:
        """Forget all answers."""
        self._known.clear()
        self.held_bytes = 0

    def _able(self, model: str) -> list[str]:
        """The engines to ask: those that surely answer if there are any, else those that may."""
        lacking = self._lacking
        if lacking:
            now = self._clock()
            for address in [a for a, since in lacking.items() if now - since >= LACKING_S]:
                del lacking[address]
        serving = [i for i in self._fleet if i.why_unusable(model) is None and i.address not in lacking]
        return [i.address for i in serving if not i.breaker.doubtful] or [i.address for i in serving]

    async def _ask(
        self, key: bytes, question: Encoded, model: str, headers: Headers, client: str
    ) -> "array[int] | None":
        authorization = [(name, value) for name, value in headers if name.lower() == "authorization"]
        usable = self._able(model)
        try:
            async with asyncio.timeout(self._deadline_s), self._slot(client, question, len(usable)):
                self._turn += 1
                for offset in range(min(2, len(usable))):
                    instance = usable[(self._turn + offset) % len(usable)]
                    try:
                        answer = await tokenize(
                            self._engines,
                            instance,
                            question,
                            self._deadline_s,
                            authorization,
                            max_bytes=self._max_bytes,
                        )
                        if answer is None:
                            continue
                        token_ids = await self._read(len(answer), read_tokens, answer)
                    except NotServedError:
                        self._lacking[instance] = self._clock()
                        continue
                    except (LegError, UnreadableError):
                        continue
                    self._remember(key, token_ids)
                    return token_ids
        except TimeoutError:
            pass
        return None

    async def _read(self, size_bytes: int, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work`, which reads `size_bytes`; much is read in another thread."""
        if size_bytes <= LARGE_BODY_BYTES:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *arguments)

    def _slot(
        self, client: str, question: Encoded, engines: int
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """The turn of a question: as many long ones are asked at once as there are engines, short ones at any
        time.
        """
        if len(question) <= LONG_BYTES:
            return contextlib.nullcontext()
        return self._long.slot(client, len(question), max(1, engines))

    @property
    def _max_bytes(self) -> int | None:
        """The largest answer: the tokens of the longest prompt that any engine takes; None if that is not
        known.
        """
        longest = self._fleet.max_model_len
        return None if longest == math.inf else _ANSWER_BYTES + _BYTES_A_TOKEN * int(longest)

    def _remember(self, key: bytes, token_ids: "array[int]") -> None:
        self._known[key] = token_ids
        self.held_bytes += _size_bytes(token_ids)
        while self.held_bytes > CACHE_BYTES:
            _, oldest = self._known.popitem(last=False)
            self.held_bytes -= _size_bytes(oldest)


def _key(question: Encoded, hour: int) -> bytes:
    key = hashlib.blake2b(digest_size=16, salt=hour.to_bytes(8, "big"))
    for part in question if isinstance(question, Pieces) else (question,):
        key.update(part)
    return key.digest()


def _size_bytes(token_ids: "array[int]") -> int:
    return 4 * len(token_ids) + 200  # the ids, and about the size of a dict entry with its key
