"""No more copies of blocks are counted than an engine has room for: each engine is asked for its room.

vLLM has it on its `/metrics` page, as a label of `vllm:cache_config_info`. With internal load balancing over
data-parallel ranks the page has the sum for each rank; then the bound is wider than the room, and never
narrower.
"""

import logging

from kvevents import PrefixIndex
from proxy.errors import LegError
from proxy.fleet import Instance
from proxy.upstream.engine_api.asking import Asker, ask
from proxy.upstream.engine_api.metrics import METRICS, read_capacities

log = logging.getLogger(__name__)


class Capacities:
    """Learns how much room engines have, and sets it in an index."""

    def __init__(self, engines: Asker, index: PrefixIndex, *, timeout_s: float) -> None:
        self._engines = engines
        self._index = index
        self._timeout_s = timeout_s
        self._asked: dict[str, int] = {}  # address -> `_epoch` when the engine's answer came
        self._told: dict[str, set[int]] = {}

    def due(self, instance: Instance, *, came_up: bool) -> bool:
        """Whether to ask an engine: it came up, has not answered yet, or is another process than the one that
        answered.
        """
        return came_up or self._asked.get(instance.address) != _epoch(instance)

    async def listed(self, address: str) -> int | None:
        """The number of ranks that an engine's metrics list, 0 if they list none; None if it does not answer.
        Raises nothing.
        """
        try:
            page = await ask(self._engines, address, METRICS, self._timeout_s)
        except LegError as error:
            log.debug("%s does not tell how many ranks it has: %s", address, error)
            return None
        return len(read_capacities(page))

    async def learn(self, instance: Instance) -> None:
        """Ask one engine, and set its room. Raises nothing; if the engine does not answer, what was known
        stays.
        """
        epoch = _epoch(instance)
        try:
            page = await ask(self._engines, instance.address, METRICS, self._timeout_s)
        except LegError as error:
            log.debug("%s does not tell its cache's size: %s", instance.address, error)
            return
        if not instance.sources:
            return  # the instance was removed meanwhile
        self._asked[instance.address] = epoch
        capacities = read_capacities(page)
        for rank in self._told.get(instance.address, set()) - capacities.keys():
            self._index.set_capacity(instance.address, rank, None)
        for rank, blocks in capacities.items():
            self._index.set_capacity(instance.address, rank, blocks)
        self._told[instance.address] = set(capacities)

    def forget(self, instance: Instance) -> None:
        """Drop what was learned of an instance that has left."""
        self._asked.pop(instance.address, None)
        for rank in self._told.pop(instance.address, ()):
            self._index.set_capacity(instance.address, rank, None)


def _epoch(instance: Instance) -> int:
    """The sum of the epochs of all its sources."""
    return sum(source.epoch for source in instance.sources.values())
