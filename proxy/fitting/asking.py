"""Invariant: while a probe runs, nothing else of kvproxy's does, and whatever ends the fit ends the probe.

A prompt is a list of tokens that was never sent before, so that nothing of it is cached but what a probe sent
itself. A dropped connection has the engine abort its request.
"""

import asyncio
import random
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from proxy.doctor import asking, prompts
from proxy.doctor.asking import ask
from proxy.doctor.prompts import WORDS
from proxy.errors import LegBrokenError, LegError
from proxy.fitting.seen import Prompted, Spent, Stepped
from proxy.fitting.sizes import STREAMED, Alone, Room, Together
from proxy.headers import REQUEST_ID
from proxy.request.dialects import COMPLETIONS
from proxy.serving.ports import Answer, Client
from proxy.tokenizing.comparison import ask_tokens
from proxy.upstream.engine_api.about import VERSION, asleep
from proxy.upstream.engine_api.asking import Asker
from proxy.upstream.engine_api.metrics import METRICS, lines_of, read_capacities
from proxy.upstream.engine_api.models import MODELS

ASK_S = 10.0
PROBE_S = 120.0
"""Seconds for a probe: a long prompt on a slow engine."""
QUIET_S = 3.0
"""Seconds until an engine has counted that a probe has ended."""
LOOK_EVERY_S = 0.05
MIN_TOKENS = 4
"""Between the last beginning of streams and their first end, for a time between two tokens."""

_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_VALUE = re.compile(r"^[^ ]*(?:\{.*\})? +([0-9.e+]+)")


class Told(NamedTuple):
    """What an engine told of itself."""

    version: str
    room: Room
    block_size: int | None
    blocks: int | None
    """Of each rank; None if it does not tell."""
    words: Sequence[int]
    """Tokens that prompts are made of."""


class Asking:
    """Sends probes to one engine after the other."""

    def __init__(self, engines: Asker, client: Client, model: str, spent: Spent) -> None:
        self._engines = engines
        self._client = client
        self._model = model
        self._spent = spent
        self._dice = random.SystemRandom()

    # -- what engines tell --------------------------------------------------------------------------------

    async def look(self, address: str, longest: int) -> Told:
        """Ask an engine what it can take. Raises LegError if it does not tell, or does not serve."""
        cards = asking.read(await ask(self._engines, address, MODELS.path, ASK_S), MODELS.read)
        if not cards.ok:
            raise LegBrokenError(address, f"its models are not known: {cards.words}")
        card = next((card for card in cards.value if card.id == self._model and not card.parent), None)
        if card is None:
            raise LegBrokenError(address, f"it does not serve {self._model}")
        if await asleep(self._engines, address, ASK_S):
            raise LegBrokenError(address, "it sleeps (/wake_up wakes it)")
        page = await self._page(address)
        counted = asking.read_counted(await ask(self._engines, address, METRICS.path, ASK_S)).value
        blocks = min(read_capacities(page).values(), default=None)
        size = counted.block_size if counted is not None else None
        version = asking.read(await ask(self._engines, address, VERSION.path, ASK_S), VERSION.read)
        most = longest if card.max_model_len is None else min(longest, card.max_model_len - STREAMED)
        kv_tokens = blocks * size if blocks is not None and size is not None else None
        return Told(
            version=str(version.value) if version.ok else "of an unknown version",
            room=Room(
                longest=max(1, most if kv_tokens is None else min(most, kv_tokens // 2)),
                kv_tokens=kv_tokens,
                caches=counted is not None and counted.prefix_caching is True and size is not None,
            ),
            block_size=size,
            blocks=blocks,
            words=await self._words(address),
        )

    async def _words(self, address: str) -> list[int]:
        body = msgspec.json.encode(prompts.completion(self._model, " ".join(WORDS)))
        found = await ask_tokens(self._engines, address, body, ASK_S)
        if not found or len(set(found)) < 8:
            raise LegBrokenError(address, "its /tokenize does not tell the tokens that probes are made of")
        return sorted(set(found[1:]))  # the first may be a special one

    async def busy(self, address: str) -> int:
        """How many requests run or wait there. Raises LegError."""
        page = await self._page(address)
        values = [_VALUE.match(line) for name in _BUSY for line in lines_of(page, name + "{")]
        return round(sum(float(value[1]) for value in values if value is not None))

    async def quiet(self, address: str) -> bool:
        """Whether nothing runs or waits there, once what was sent has been counted. Raises LegError."""
        ends_at = time.monotonic() + QUIET_S
        while await self.busy(address):
            if time.monotonic() >= ends_at:
                return False
            await asyncio.sleep(LOOK_EVERY_S)
        return True

    async def _page(self, address: str) -> str:
        answer = await ask(self._engines, address, METRICS.path, ASK_S)
        if not answer.ok:
            raise LegBrokenError(address, f"its /metrics: {answer.words}")
        return METRICS.read(answer.value)

    # -- probes -------------------------------------------------------------------------------------------

    def tokens(self, told: Told, count: int) -> list[int]:
        """A prompt of so many tokens that was never sent before."""
        return self._dice.choices(told.words, k=count)

    async def alone(self, address: str, told: Told, probe: Alone) -> list[Prompted]:
        """A prompt, and before it its first tokens if they shall be cached. Raises LegError."""
        ids = self.tokens(told, probe.prompt)
        found = []
        if probe.cached:
            found.append(await self._prompt(address, ids[: probe.cached], 0, held_out=probe.held_out))
        size = told.block_size or 1
        cached = min(probe.cached, probe.prompt - 1) // size * size
        found.append(await self._prompt(address, ids, cached, held_out=probe.held_out))
        return found

    async def _prompt(self, address: str, ids: list[int], cached: int, *, held_out: bool) -> Prompted:
        body = prompts.one_token(prompts.completion(self._model, ids))
        self._count(len(ids), 1)
        began_at = time.monotonic()
        headers = [(REQUEST_ID, _name())]
        answer = await ask(self._engines, address, COMPLETIONS.path, PROBE_S, body, headers)
        ended_at = time.monotonic()
        if not answer.ok:
            raise LegBrokenError(address, f"a probe of {len(ids)} tokens: {answer.words}")
        try:
            usage = COMPLETIONS.usage(answer.value)
        except ValueError as error:
            raise LegBrokenError(address, str(error)) from None
        prompt = usage.prompt_tokens or len(ids)
        uncached = prompt - (cached if usage.cached_tokens is None else usage.cached_tokens)
        return Prompted(address, began_at, ended_at, max(uncached, 1), prompt, held_out)

    async def together(self, address: str, told: Told, probe: Together) -> Stepped | None:
        """Streams at the same time; None if the engine did not let them run together. Raises LegError."""
        streams = [_Stream() for _ in range(probe.sequences)]
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for stream in streams:
                    ids = self.tokens(told, probe.context)
                    self._count(len(ids), STREAMED)
                    group.create_task(self._stream(address, ids, stream), name=f"probe of {address}")
        except* LegError as failures:
            failed = failures.exceptions[0]
        if failed is not None:
            raise failed
        return _stepped(address, probe, streams)

    async def _stream(self, address: str, ids: list[int], stream: "_Stream") -> None:
        body = prompts.completion(self._model, ids) | _STREAMED
        headers = [(REQUEST_ID, _name())]
        try:
            async with asyncio.timeout(PROBE_S):
                with await self._client.post(
                    address, COMPLETIONS.path, msgspec.json.encode(body), headers
                ) as answer:  # type: ignore[attr-defined]  # the client's answers are closed so
                    await stream.read(answer)
        except TimeoutError:
            raise LegBrokenError(address, f"a stream took longer than {PROBE_S:g} s") from None

    def _count(self, prompt_tokens: int, generated_tokens: int) -> None:
        self._spent.requests += 1
        self._spent.prompt_tokens += prompt_tokens
        self._spent.generated_tokens += generated_tokens


_STREAMED: dict[str, Any] = {
    "max_tokens": STREAMED,
    "min_tokens": STREAMED,
    "ignore_eos": True,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    usage: _Usage | None = None


class _Stream:
    """When how many tokens of a stream were there."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.tokens: list[int] = []

    async def read(self, answer: Answer) -> None:
        """Read a stream to its end. Raises LegError if it is none."""
        if answer.status != 200 or not answer.is_event_stream:
            raise LegBrokenError(answer.instance, f"a stream was answered with status {answer.status}")
        rest = b""
        while chunk := await answer.next_chunk(PROBE_S):
            now = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._line(answer.instance, line, now)

    def _line(self, instance: str, line: bytes, now: float) -> None:
        data = line.removeprefix(b"data:").strip()
        if len(data) == len(line.strip()) or not data.startswith(b"{"):
            return
        try:
            event = msgspec.json.decode(data, type=_Event)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise LegBrokenError(instance, "an event of a stream cannot be read") from None
        tokens = event.usage.completion_tokens if event.usage is not None else 0
        if tokens > (self.tokens[-1] if self.tokens else 0):
            self.at.append(now)
            self.tokens.append(tokens)


def _stepped(address: str, probe: Together, streams: Sequence[_Stream]) -> Stepped | None:
    """The time between two tokens while all streams ran."""
    if not all(stream.at for stream in streams):
        return None
    begin, end = max(stream.at[0] for stream in streams), min(stream.at[-1] for stream in streams)
    times_ms, contexts = [], 0.0
    for stream in streams:
        inside = [place for place, at in enumerate(stream.at) if begin <= at <= end]
        if not inside:
            return None
        first, last = inside[0], inside[-1]
        tokens = stream.tokens[last] - stream.tokens[first]
        if tokens < MIN_TOKENS:
            return None
        times_ms.append(1000 * (stream.at[last] - stream.at[first]) / tokens)
        contexts += probe.context + (stream.tokens[last] + stream.tokens[first]) / 2
    return Stepped(address, probe.sequences, contexts, statistics.median(times_ms), probe.held_out)


def _name() -> str:
    return prompts.request_id().replace("doctor", "fit")
