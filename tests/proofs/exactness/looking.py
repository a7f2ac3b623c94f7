"""What one kvproxy says of itself, twice a second: what its index of each instance is worth, and its truth
meter.

The meter counts from the beginning of a process; over a restart the counts of the lives before are added.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from scripts.workshop.live.proxy import ProxyProcess

LOOK_EVERY_S = 0.5
_TIMEOUT_S = 30.0

Meter = dict[str, Counter[str]]
"""By instance: legs, exact, over, under, unreported, and the misses by cause; of legs from exact slots."""


@dataclass(frozen=True)
class Look:
    """One answer of /status."""

    begun: float
    ended: float
    instances: dict[str, dict[str, Any]]

    def worth(self, address: str) -> str:
        """Of the index of an instance."""
        return str(self.instances.get(address, {}).get("index", "unknown"))

    @property
    def meter(self) -> Meter | None:
        """None if this kvproxy has none."""
        found: Meter = {}
        for address, instance in self.instances.items():
            counts = found.setdefault(address, Counter())
            for rank in instance["ranks"]:
                if (accuracy := rank.get("accuracy")) is None:
                    return None
                for name in ("legs", "exact", "over", "under", "unreported"):
                    counts[name] += accuracy[name]
                for cause, count in accuracy["misses"].items():
                    counts[f"miss {cause}"] += count
        return found


class Looks:
    """All looks at one kvproxy."""

    def __init__(self, proxy: ProxyProcess, session: aiohttp.ClientSession) -> None:
        self._proxy = proxy
        self._session = session
        self._kept: list[Look] = []
        self._earlier: Meter = {}
        self.untold = 0
        """Misses whose cause it had not told yet when it was killed."""
        self.away = False
        """It is being restarted."""

    async def run(self, until: asyncio.Event) -> None:
        """Look until the event."""
        while not until.is_set():
            if not self.away:
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> Look | None:
        """Look now; None if there is no answer."""
        begun = time.time()
        try:
            async with (
                asyncio.timeout(_TIMEOUT_S),
                self._session.get(f"{self._proxy.url}/status") as answer,
            ):
                answer.raise_for_status()
                instances = {each["instance"]: each for each in (await answer.json())["instances"]}
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        look = Look(begun, time.time(), instances)
        self._kept.append(look)
        return look

    @property
    def last(self) -> Look | None:
        return self._kept[-1] if self._kept else None

    def dies(self) -> None:
        """The process is about to be killed; the last look is what its meter counts for."""
        self._earlier = self.meter
        self.untold = sum(map(unexplained, self._earlier.values()))
        self.away = True

    def lives(self, proxy: ProxyProcess) -> None:
        """Another process has taken its place."""
        self._proxy, self.away = proxy, False
        self._kept.append(Look(time.time(), time.time(), {}))

    @property
    def meter(self) -> Meter:
        """The counts of all lives up to the last look."""
        total = {address: Counter(counts) for address, counts in self._earlier.items()}
        now = self.last.meter if self.last is not None else None
        for address, counts in (now or {}).items():
            total[address] = total.get(address, Counter()) + counts
        return total

    def worth(self, address: str, begun: float, ended: float) -> str:
        """Of the index of an instance while a request ran; `changing` if the looks differ."""
        seen = {look.worth(address) for look in self._around(begun, ended)}
        return seen.pop() if len(seen) == 1 else "changing"

    def _around(self, begun: float, ended: float) -> Iterator[Look]:
        """The last look that was over before, the first that began after, and all between."""
        before: Look | None = None
        for look in self._kept:
            if look.ended <= begun:
                before = look
                continue
            if before is not None:
                yield before
                before = None
            yield look
            if look.begun >= ended:
                return


def grown(before: Meter, after: Meter) -> Meter:
    """What was counted between two moments."""
    return {address: counts - before.get(address, Counter()) for address, counts in after.items()}


def unexplained(counts: Counter[str]) -> int:
    """Misses without a cause so far: kvproxy waits a moment for the engine's events before it names one."""
    causes = sum(count for name, count in counts.items() if name.startswith("miss "))
    return counts["over"] + counts["under"] - causes
