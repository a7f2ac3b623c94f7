"""An engine is asleep if it says so itself; no leg is needed to find out, and who cannot sleep is asked once.

vLLM has `/is_sleeping`, `/sleep` and `/wake_up` with VLLM_SERVER_DEV_MODE=1 alone. `/health` answers 200 all the while, and
requests wait in the engine until it is awake. From level 1 on it has dropped its prefix cache, and its events say so no
sooner than with the first batch after it woke.
"""

import enum
import logging
import re
from typing import Protocol

import msgspec

from proxy.errors import LegError
from proxy.fleet.instances import Instance, Status
from proxy.upstream.metrics_page import lines_of

log = logging.getLogger(__name__)

IS_SLEEPING = "/is_sleeping"
METRICS = "/metrics"

_NAME = "vllm:engine_sleep_state{"
_STATE = re.compile(r'[{,]sleep_state="(\w{1,20})"')


class Depth(enum.StrEnum):
    """What sleep has cost, as the engine's metrics tell it."""

    LIGHT = "light"
    """Level 0, or it has not yet done what was running: its cache is as it was."""
    DEEP = "deep"
    """Level 1 or 2: its cache is empty, and nothing runs any more."""
    UNTOLD = "untold"


class Engines(Protocol):
    """The part of the engine client needed here."""

    async def exchange(
        self, method: str, instance: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        """Status and body of an engine's answer; raises LegError."""
        ...

    async def get_text(self, instance: str, path: str, timeout_s: float) -> str:
        """Ask an engine for a page; raises LegError."""
        ...


class _Answer(msgspec.Struct):
    is_sleeping: bool


class Sleepers:
    """Asks engines whether they sleep."""

    def __init__(self, engines: Engines, *, timeout_s: float) -> None:
        self._engines = engines
        self._timeout_s = timeout_s
        self._sleepless: dict[str, int] = {}
        """Those that have no such question, and how often their sources had forgotten all when they said so."""

    def can_sleep(self, instance: Instance) -> bool:
        """Whether it may be asleep without our knowing."""
        return self._sleepless.get(instance.address) != _processes(instance)

    async def asleep(self, instance: Instance) -> bool:
        """Whether it sleeps; what was known, if it does not answer. Raises nothing."""
        if instance.status not in {Status.UP, Status.ASLEEP}:
            self._sleepless.pop(instance.address, None)  # who comes up may be another process
        if not self.can_sleep(instance):
            return False
        processes = _processes(instance)
        try:
            status, data = await self._engines.exchange(
                "GET", instance.address, IS_SLEEPING, None, self._timeout_s
            )
            if status == 200:
                return msgspec.json.decode(data, type=_Answer).is_sleeping
        except (LegError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.debug("%s does not tell whether it sleeps: %s", instance.address, error)
            return instance.status is Status.ASLEEP
        if status < 500:
            self._sleepless[instance.address] = processes
            return False
        return instance.status is Status.ASLEEP

    async def depth(self, instance: Instance) -> Depth | None:
        """What the sleep of one that sleeps has cost; None if it did not answer. Raises nothing."""
        try:
            page = await self._engines.get_text(instance.address, METRICS, self._timeout_s)
        except LegError as error:
            log.debug("%s does not tell how it sleeps: %s", instance.address, error)
            return None
        return read_depth(page)

    def forget(self, address: str) -> None:
        """It has left."""
        self._sleepless.pop(address, None)


def read_depth(page: str) -> Depth:
    """What an engine's metrics page tells of its sleep; one rank that has lost its cache is enough."""
    states = []
    for line in lines_of(page, _NAME):
        labels, _, value = line.rpartition("} ")
        if (state := _STATE.search(labels)) is not None and value in {"0", "0.0", "1", "1.0"}:
            states.append((state[1], value[0] == "1"))
    if not states:
        return Depth.UNTOLD
    deep = any(is_so for name, is_so in states if name in {"weights_offloaded", "discard_all"})
    return Depth.DEEP if deep else Depth.LIGHT


def _processes(instance: Instance) -> int:
    return sum(source.epoch for source in instance.sources.values())
