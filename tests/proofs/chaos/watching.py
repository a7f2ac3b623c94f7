"""One reader of kvproxy's state for everybody: a look every half second, and what was seen is kept."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.proofs.setting import Setting

LOOK_EVERY_S = 0.5
LOOK_TIMEOUT_S = 30.0  # machines stall
KEPT_LOOKS = 400
Instances = dict[str, dict[str, Any]]


class Watcher:
    """The latest `/status`, and the counts of stranded holds over time."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._looked = asyncio.Condition()
        self.instances: Instances = {}
        self.looked_at = 0.0
        self.stranded: list[tuple[float, int]] = []
        """When the count of stranded holds was seen to grow, and to what."""
        self._prefills: deque[tuple[float, dict[str, int]]] = deque(maxlen=KEPT_LOOKS)
        self.silent: list[str] = []
        """When kvproxy did not answer a look."""

    async def run(self, until: asyncio.Event) -> None:
        """Look until the event."""
        while not until.is_set():
            begun = time.monotonic()
            try:
                await self._look(begun)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.silent.append(f"kvproxy did not answer /status: {type(error).__name__} {error}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, begun: float) -> None:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            instances = await self._setting.status()
            page = await self._setting.metrics()
        stranded = int(page.total("kvproxy_holds_total", end="stranded"))
        if stranded > (self.stranded[-1][1] if self.stranded else 0):
            self.stranded.append((begun, stranded))
        running = {address: each["in_flight"].get("prefill", 0) for address, each in instances.items()}
        self._prefills.append((begun, running))
        async with self._looked:
            self.instances, self.looked_at = instances, begun
            self._looked.notify_all()

    def most_prefills(self, address: str, since: float) -> int:
        """The most prefill legs that were seen to run on an instance at once since a moment not long ago."""
        return max((running.get(address, 0) for at, running in self._prefills if at >= since), default=0)

    async def until(self, seen: Callable[[Instances], bool], timeout_s: float, what: str) -> None:
        """Wait until a look that begins from now on shows something; TimeoutError otherwise."""
        asked = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s), self._looked:
                await self._looked.wait_for(lambda: self.looked_at >= asked and seen(self.instances))
        except TimeoutError:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}") from None
