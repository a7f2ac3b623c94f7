"""Invariant: a request is sent when the workload says, whatever became of others, and is timed from there.

Clients measure what users would: from sending to the first token, and from one token to the next.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import aiohttp
import msgspec

from proxy.traces.workload import TraceRequest, Workload
from tests.proofs.live.prompts import body_of

DEADLINE_S = 600.0
_EVENT_END = b"\n\n"
_DONE = b"data: [DONE]"


@dataclasses.dataclass
class Seen:
    """What the client of one request saw; seconds since the first was to be sent."""

    sent_s: float = 0.0
    late_s: float = 0.0
    """How much later it was sent than it was to be."""
    tokens_s: list[float] = dataclasses.field(default_factory=list)
    """When each token came."""
    ended_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, where it was computed, as the engine says."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: str = ""
    """What was wrong with the answer, if anything was."""

    @property
    def ttft_s(self) -> float:
        return self.tokens_s[0] - self.sent_s

    @property
    def whole_s(self) -> float:
        return self.tokens_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean time for each token after the first."""
        return (self.tokens_s[-1] - self.tokens_s[0]) / max(1, len(self.tokens_s) - 1)


def id_of(number: int) -> str:
    """The request id of a workload's request."""
    return f"live-{number}"


def number_of(request_id: str) -> int:
    """The number in its workload of the request with that id."""
    return int(request_id.removeprefix("live-"))


class Clients:
    """The clients of one workload before one kvproxy."""

    def __init__(
        self,
        url: str,
        workload: Workload,
        model: str,
        tell: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """`tell`: called with how many requests have ended, and how many there are, as each ends."""
        self._url = f"{url}/v1/completions"
        self._requests = workload.requests
        self._bodies = [body_of(number, each, model) for number, each in enumerate(workload.requests)]
        self._ended = [asyncio.Event() for _ in workload.requests]
        self._tell = tell
        self._begin = 0.0

    async def all_of_it(self) -> list[Seen]:
        """Send every request in its time; what each client saw, in the order of the workload."""
        timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            self._begin = time.monotonic()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(session, number)) for number in range(len(self._bodies))]
        return [task.result() for task in tasks]

    async def one_by_one(self) -> list[Seen]:
        """Send each request when the one before has ended."""
        async with aiohttp.ClientSession() as session:
            self._begin = time.monotonic()
            return [await self._ask(session, number, self._now_s()) for number in range(len(self._bodies))]

    def _now_s(self) -> float:
        return time.monotonic() - self._begin

    async def _one(self, session: aiohttp.ClientSession, number: int) -> Seen:
        request = self._requests[number]
        due_s = request.at_s
        if request.after is not None:
            await self._ended[request.after].wait()
            due_s = self._now_s() + request.think_s
        await asyncio.sleep(max(0.0, due_s - self._now_s()))
        try:
            return await self._ask(session, number, due_s)
        finally:
            self._ended[number].set()
            self._tell(sum(ended.is_set() for ended in self._ended), len(self._ended))

    async def _ask(self, session: aiohttp.ClientSession, number: int, due_s: float) -> Seen:
        seen = Seen(sent_s=self._now_s())
        seen.late_s = seen.sent_s - due_s
        answer = b""
        headers = {"Content-Type": "application/json", "X-Request-Id": id_of(number)}
        try:
            async with session.post(self._url, data=self._bodies[number], headers=headers) as response:
                seen.headers = response.headers
                async for piece in response.content.iter_any():
                    answer += piece
                    events = answer.count(_EVENT_END)
                    seen.tokens_s += [self._now_s()] * (events - len(seen.tokens_s))
                seen.error = "" if response.status == 200 else f"{response.status}: {answer[:200]!r}"
        except (aiohttp.ClientError, TimeoutError) as error:
            seen.error = repr(error)
        seen.ended_s = self._now_s()
        if not seen.error:
            _read(seen, answer, self._requests[number])
        return seen


def _read(seen: Seen, answer: bytes, request: TraceRequest) -> None:
    """Take what stands in a whole answer; the last two events, usage and the end, are no tokens."""
    events = answer.split(_EVENT_END)[:-1]
    del seen.tokens_s[-2:]
    if len(events) < 3 or events[-1] != _DONE:
        seen.error = "the stream has no end"
        return
    usage = msgspec.json.decode(events[-2].removeprefix(b"data: ")).get("usage") or {}
    seen.prompt_tokens = usage.get("prompt_tokens", 0)
    seen.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    told = (seen.prompt_tokens, usage.get("completion_tokens"), len(seen.tokens_s))
    if told != (asked := (request.input_tokens, request.output_tokens, request.output_tokens)):
        seen.error = f"prompt, answer and events of {told} tokens, not {asked}"


def served(seen: Sequence[Seen]) -> list[Seen]:
    """Those whose answer was whole."""
    return [each for each in seen if not each.error]
