"""An engine is asleep if it says so itself; no leg is needed to find out, and who cannot sleep is asked once.

vLLM has `/is_sleeping`, `/sleep` and `/wake_up` with VLLM_SERVER_DEV_MODE=1 alone. `/health` answers 200 all
the while, and requests wait in the engine until it is awake. From level 1 on it has dropped its prefix cache,
and its events say so no sooner than with the first batch after it woke.
"""

import logging

from proxy.errors import LegError
from proxy.fleet import Instance, Status
from proxy.upstream.engine_api.about import asleep
from proxy.upstream.engine_api.asking import Asker, ask
from proxy.upstream.engine_api.metrics import METRICS, Depth, read_depth

log = logging.getLogger(__name__)


class Sleepers:
    """Asks engines whether they sleep."""

    def __init__(self, engines: Asker, *, timeout_s: float) -> None:
        self._engines = engines
        self._timeout_s = timeout_s
        self._sleepless: dict[str, int] = {}
        """Those that have no such question, and how often their sources had forgotten all when they said
        so."""

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
            sleeps = await asleep(self._engines, instance.address, self._timeout_s)
        except LegError as error:
            log.debug("%s does not tell whether it sleeps: %s", instance.address, error)
            return instance.status is Status.ASLEEP
        if sleeps is None:
            self._sleepless[instance.address] = processes
        return bool(sleeps)

    async def depth(self, instance: Instance) -> Depth | None:
        """What the sleep of one that sleeps has cost; None if it did not answer. Raises nothing."""
        try:
            page = await ask(self._engines, instance.address, METRICS, self._timeout_s)
        except LegError as error:
            log.debug("%s does not tell how it sleeps: %s", instance.address, error)
            return None
        return read_depth(page)

    def forget(self, address: str) -> None:
        """Drop what was learned of an instance that has left."""
        self._sleepless.pop(address, None)


def _processes(instance: Instance) -> int:
    return sum(source.epoch for source in instance.sources.values())
