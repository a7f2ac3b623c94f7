"""An engine is asleep if it says so itself; no leg is needed to find out. An engine that cannot sleep is
asked once.

vLLM has `/is_sleeping`, `/sleep` and `/wake_up` only with VLLM_SERVER_DEV_MODE=1. `/health` answers 200
meanwhile, and requests wait in the engine until it is awake. From level 1 on the engine has dropped its
prefix cache, and its events say so with the first batch after it woke at the earliest.
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
        """The engines that have no `/is_sleeping`, each with the sum of its sources' epochs when that was
        found."""

    def can_sleep(self, instance: Instance) -> bool:
        """Whether an engine may be asleep although that is not known here."""
        return self._sleepless.get(instance.address) != _processes(instance)

    async def asleep(self, instance: Instance) -> bool:
        """Whether an engine sleeps; if it does not answer, what was known before. Raises nothing."""
        if instance.status not in {Status.UP, Status.ASLEEP}:
            self._sleepless.pop(instance.address, None)  # an engine that comes up may be another process
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
        """How deeply a sleeping engine sleeps; None if it does not answer. Raises nothing."""
        try:
            page = await ask(self._engines, instance.address, METRICS, self._timeout_s)
        except LegError as error:
            log.debug("%s does not tell how it sleeps: %s", instance.address, error)
            return None
        return read_depth(page)

    def forget(self, address: str) -> None:
        """Forget what was learned of an instance that was removed."""
        self._sleepless.pop(address, None)


def _processes(instance: Instance) -> int:
    return sum(source.epoch for source in instance.sources.values())
