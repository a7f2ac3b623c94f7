"""A campaign passes if kvproxy serves as well after it as before, holds no more than before, and said nothing
untrue.

It fires shots in rounds, while the decode engine fails inside a stream now and then. After each round kvproxy
must answer some right requests as its engines do; after the last one nothing may be left in flight, and
memory, descriptors and threads must be back where the first round left them.
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fuzz.http import values
from tests.fuzz.http.client import Fuzzer, Tally, words
from tests.fuzz.http.setting import ADMIN_KEY, MODEL, Level, Setting
from tests.fuzz.http.shots import Shots, Target

RSS_MIB = 8.0
"""Beside what bounded caches say they hold."""
LARGE_BEFORE = 60
"""So many large bodies are sent before memory is looked at first: hardly any of them come in a short
campaign's first round, and the first ones start threads and take arenas that stay."""
RSS_BYTES_A_REQUEST = 16
"""Memory may grow by both together: less than any Python object that is kept for every request."""
FDS = 16
"""Connections to engines stay open for some seconds."""
THREADS = 8
"""Large bodies are read in threads, which then wait for more."""
REST_S = 60.0
ERRORS_EVERY_S = 0.2
"""One answer of the decode engine fails; its circuit stays closed at that pace."""
MAX_CHUNKS = 6
"""Of a stream before it fails; the first of a chat only names the role."""

_RIGHT = (
    ("/v1/completions", {"model": MODEL, "prompt": "is it still right", "max_tokens": 8, "temperature": 0}),
    (
        "/v1/chat/completions",
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "is it still right"}],
            "max_tokens": 8,
            "temperature": 0,
        },
    ),
)


@dataclass(slots=True)
class Result:
    """What came of a campaign."""

    tally: Tally
    seconds: float = 0.0
    before: Level | None = None
    after: Level | None = None
    failures: list[str] = field(default_factory=list)
    """Beside the tally's findings."""

    @property
    def passed(self) -> bool:
        return not self.failures and not self.tally.found


class Campaign:
    """Shots of one seed at one setting."""

    def __init__(self, setting: Setting, seed: int, connections: int, say: Callable[[str], None]) -> None:
        self._setting = setting
        self._connections = connections
        self._say = say
        target = Target(ADMIN_KEY, setting.spare, "127.0.0.1:1")
        self._shots = Shots(seed, target)
        self._random = random.Random(seed)  # repeatable on purpose

    async def run(self, requests: int, rounds: int, time_limit_s: float) -> Result:
        """Send about that many requests in that many rounds, or until time is up."""
        tally = Tally()
        result = Result(tally)
        begun = time.monotonic()
        expected = [self._words(f"http://{self._setting.fixed[1]}", *right) for right in _RIGHT]
        fuzzer = Fuzzer(*self._setting.address, self._shots, itertools.count(), tally)
        shown = 0
        await asyncio.to_thread(self._send_large)
        for number in range(rounds):
            goal = requests * (number + 1) // rounds

            def enough(tally: Tally, goal: int = goal) -> bool:
                return tally.requests >= goal or time.monotonic() - begun > time_limit_s

            errors = asyncio.get_running_loop().create_task(self._errors(), name="errors in streams")
            try:
                await fuzzer.run(self._connections, enough)
            finally:
                errors.cancel()
                await asyncio.wait({errors})
            result.failures += self._setting.died()
            if result.failures:
                break
            result.failures += await asyncio.to_thread(self._aftermath, expected)
            after = self._setting.level()
            result.before = result.before or after
            result.after = after
            for finding in tally.findings[shown:]:
                self._say(words(finding))
            shown = len(tally.findings)
            self._say(
                f"  {tally.requests} requests in {time.monotonic() - begun:.0f} s, {after.rss_mib:.1f} MiB, "
                f"{after.cached_mib:.1f} MiB of them in caches, {after.fds} descriptors, {tally.found} "
                "findings"
            )
            if time.monotonic() - begun > time_limit_s:
                break
        result.seconds = time.monotonic() - begun
        result.failures += self._setting.bad_log_lines()[:20] + self._growth(result)
        return result

    def _send_large(self) -> None:
        rng = random.Random(0)  # the same before every campaign
        for _ in range(LARGE_BEFORE):
            with contextlib.suppress(OSError):  # most are refused
                self._setting.post(self._setting.proxy.url, *values.large(rng))

    async def _errors(self) -> None:
        """Have the decode engine fail at one answer after the other, until cancelled."""
        try:
            while True:
                chunks = self._random.randint(0, MAX_CHUNKS)
                fault = {"kind": "error", "path": "/v1/c", "status": 500, "after_chunks": chunks, "times": 1}
                await self._tell_decode({"clear": True, "add": fault})
                await asyncio.sleep(ERRORS_EVERY_S)
        finally:
            await self._tell_decode({"clear": True})

    async def _tell_decode(self, command: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # one that has died is told of by itself
            await asyncio.to_thread(self._setting.decode_engine, command)

    async def one(self, number: int) -> Tally:
        """Fire one shot alone."""
        tally = Tally()
        fuzzer = Fuzzer(*self._setting.address, self._shots, iter((number,)), tally)
        await fuzzer.run(1, lambda _tally: False)
        return tally

    def _aftermath(self, expected: list[str]) -> list[str]:
        """What is wrong once nothing is sent any more."""
        found = []
        try:
            for (path, body), words in zip(_RIGHT, expected, strict=True):
                if (got := self._words(self._setting.proxy.url, path, body)) != words:
                    found.append(f"{path} says {got!r}, its engine {words!r}")
            end = time.monotonic() + REST_S
            while (unrest := self._setting.unrest()) and time.monotonic() < end:
                time.sleep(0.1)
            found += unrest
        except (OSError, ValueError, KeyError) as error:
            found.append(f"a right request failed: {error!r}")
        return found

    def _words(self, url: str, path: str, body: dict[str, object]) -> str:
        [choice] = json.loads(self._setting.post(url, path, body))["choices"]
        words: str = choice["text"] if "text" in choice else choice["message"]["content"]
        return words

    def _growth(self, result: Result) -> list[str]:
        before = result.before
        if before is None or result.after is None or self._setting.died():
            return []
        found = []
        end = time.monotonic() + REST_S
        while self._setting.level().fds > before.fds + FDS and time.monotonic() < end:
            time.sleep(0.1)
        result.after = after = self._setting.level()
        allowed_mib = (
            after.cached_mib
            - before.cached_mib
            + RSS_MIB
            + RSS_BYTES_A_REQUEST * result.tally.requests / (1 << 20)
        )
        if after.rss_mib > before.rss_mib + allowed_mib:
            found.append(f"memory grew from {before.rss_mib:.1f} to {after.rss_mib:.1f} MiB")
        if after.fds > before.fds + FDS:
            found.append(f"descriptors grew from {before.fds} to {after.fds}")
        if after.threads > before.threads + THREADS:
            found.append(f"threads grew from {before.threads} to {after.threads}")
        return found
