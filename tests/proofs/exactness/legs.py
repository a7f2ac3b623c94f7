"""Clients ask and note, for each prefill leg, what kvproxy said was cached and what the engine said then.

The decision headers tell the first; the second is `usage.prompt_tokens_details.cached_tokens`, in which a
decode engine passes on what the prefill engine reported.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from scripts.workshop.live.asking import Answer, ask
from tests.proofs.exactness.prompts import Kind, Plan, Prompts

DEADLINE_S = 180.0
_AFTER_FAILURE_S = 0.3


@dataclass
class Leg:
    """One request as its client saw it. Times are seconds since the epoch, as engines stamp their events."""

    id: str
    router: str
    phase: str
    plan: Plan
    begun: float
    ended: float = 0.0
    status: int | None = None
    """None: no whole answer came."""
    error: str = ""
    prefill: str = ""
    decode: str = ""
    prompt_tokens: int = 0
    predicted: int | None = None
    reported: int = 0
    index: str = "unknown"
    """What kvproxy said the index of the prefill instance was worth: exact, partial, unknown, or changing
    meanwhile."""

    @property
    def served(self) -> bool:
        return self.status == 200

    @property
    def right(self) -> bool:
        return self.predicted == self.reported

    @property
    def judged(self) -> bool:
        """Whether it is a leg from an exact slot."""
        return self.served and self.predicted is not None and self.index == "exact"

    def take(self, answer: Answer) -> None:
        """Note what came."""
        self.status, self.prefill, self.decode = answer.status, answer.prefill, answer.decode
        if answer.status != 200:
            self.error = answer.body[:300].decode("utf-8", "replace")
        elif not answer.complete or not answer.usage:
            self.status, self.error = (
                None,
                "the stream was cut: " + answer.body[-200:].decode("utf-8", "replace"),
            )
        else:
            self.predicted, self.reported = answer.predicted, answer.reported
            self.prompt_tokens = answer.prompt_tokens


@dataclass
class Crowd:
    """The clients of one kvproxy, named so."""

    router: str
    url: str
    session: aiohttp.ClientSession
    seed: int
    pause_s: float
    phase: str = ""
    mix: Mapping[Kind, int] = field(default_factory=dict)
    legs: list[Leg] = field(default_factory=list)
    running: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: nobody begins another request."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def run(self, clients: int, until: asyncio.Event) -> None:
        """Have so many clients ask, one request after the other each, until the event; then end what runs."""
        self.go.set()
        async with asyncio.TaskGroup() as group:
            for n in range(clients):
                prompts = Prompts(f"{self.router}{n}", self.seed)
                group.create_task(self._client(prompts, until), name=f"client {self.router}{n}")

    async def _client(self, prompts: Prompts, until: asyncio.Event) -> None:
        while not until.is_set():
            await self.go.wait()
            leg = await self.one(prompts)
            pause_s = prompts.pause_s(self.pause_s) + (0.0 if leg.served else _AFTER_FAILURE_S)
            try:
                async with asyncio.timeout(pause_s):
                    await until.wait()
            except TimeoutError:
                pass

    async def one(self, prompts: Prompts) -> Leg:
        """Ask one request and wait for its end."""
        plan = prompts.next(self.mix)
        number = next(self._numbers)
        leg = Leg(f"{self.router}-{number}", self.router, self.phase, plan, time.time())
        self.legs.append(leg)
        self.running += 1
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await ask(self.session, self.url, plan.path, plan.body, {"X-Request-Id": leg.id})
            leg.take(answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            leg.error = f"{type(error).__name__} {error}"
        finally:
            leg.ended = time.time()
            self.running -= 1
        if leg.served:
            prompts.answered(plan, answer.text)
        else:
            prompts.failed(plan)
        return leg
