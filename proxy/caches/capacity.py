"""No more copies of blocks are counted than an engine has room for: each rank's room is asked of its engine.

vLLM tells it on its `/metrics` page, as a label of `vllm:cache_config_info`. With internal load balancing
over data-parallel ranks it tells the sum for each of them, so the bound is laxer there, and never too narrow.
"""

import logging

from kvevents import PrefixIndex
from proxy.errors import LegError
from proxy.fleet import Instance
from proxy.upstream.engine_api.asking import Asker, ask
from proxy.upstream.engine_api.metrics import METRICS, read_capacities

log = logging.getLogger(__name__)


class Capacities:
    """Tells an index how much room the engines have."""

    def __init__(self, engines: Asker, index: PrefixIndex, *, timeout_s: float) -> None:
        self._engines = engines
        self._index = index
        self._timeout_s = timeout_s
        self._asked: dict[str, int] = {}  # address -> `_epoch` when its answer came
        self._told: dict[str, set[int]] = {}

    def due(self, instance: Instance, *, came_up: bool) -> bool:
        """Whether to ask: it came up, it has not answered yet, or it is another process than when it
        answered.
        """
        return came_up or self._asked.get(instance.address) != _epoch(instance)

    async def listed(self, address: str) -> int | None:
        """How many ranks an engine's metrics list, 0 if they list none; None if they do not answer. Raises
        nothing.
        """
        try:
            page = await ask(self._engines, address, METRICS, self._timeout_s)
        except LegError as error:
            log.debug("%s does not tell how many ranks it has: %s", address, error)
            return None
        return len(read_capacities(page))

    async def learn(self, instance: Instance) -> None:
        """Ask one engine. Raises nothing; one that does not answer keeps what was known of it."""
        epoch = _epoch(instance)
        try:
            page = await ask(self._engines, instance.address, METRICS, self._timeout_s)
        except LegError as error:
            log.debug("%s does not tell its cache's size: %s", instance.address, error)
            return
        if not instance.sources:
            return  # it has left meanwhile
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
    """The epochs of all its sources together."""
    return sum(source.epoch for source in instance.sources.values())
