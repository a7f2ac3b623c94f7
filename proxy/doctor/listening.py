"""One rank's KV events are followed for a short while by a subscriber and an index of the doctor's own."""

import asyncio
import contextlib
import socket
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable

from kvevents import (
    DEFAULT_TIER,
    BlockRemoved,
    BlockStored,
    Change,
    NullObserver,
    PrefixIndex,
    Prompt,
    Reason,
    RetireReason,
)
from kvevents.subscriber import Context, SourceAddress, Subscriber
from proxy.doctor.runs import Search
from proxy.tasks import TaskOwner

NEVER_S = 3600.0
"""Seconds that never pass in a run: the subscriber asks for no replay by itself, since a probe's event has to
come live."""

_LOOK_EVERY_S = 0.02


class Listener(NullObserver):
    """An index and an observer in one, so that events are seen in the order in which the index gets them."""

    def __init__(
        self,
        instance: str,
        address: SourceAddress,
        context: Context,
        tasks: TaskOwner,
        *,
        replay_quiet_s: float,
    ) -> None:
        """Begins to listen. `replay_quiet_s`: as of `Patience`."""
        self.address = address
        self.dropped: Counter[str] = Counter()
        self.messages = 0
        self.replayed: int | None = None
        self.replay_failures = 0
        self._replays = 0
        self.contradicted = False
        """Whether published batches did not continue replayed ones."""
        self.search: Search | None = None
        """Looks for the probe among the stored runs; None before the probe is sent."""
        self._ts_s = 0.0
        self._instance = instance
        self._index = PrefixIndex()
        self._subscriber = Subscriber(
            instance,
            address,
            self,
            self,
            context=context,
            probe_s=NEVER_S,
            settle_s=NEVER_S,
            replay_quiet_s=replay_quiet_s,
        )
        name = f"events of {instance} rank {address.rank}"
        self._task = tasks.create(self._subscriber.run(), name=name)

    async def close(self) -> None:
        """End listening."""
        self._task.cancel()
        await asyncio.wait({self._task})

    # -- what is known -----------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a publisher is connected."""
        return self._subscriber.connected

    @property
    def state(self) -> str:
        """The state of the index."""
        return str(self._subscriber.state)

    @property
    def block_size(self) -> int | None:
        """The tokens of a block; None before the first was stored."""
        return self._index.block_size(self._instance, self.address.rank)

    def cached_tokens(self, prompt: Prompt) -> int:
        """The tokens of a prompt that are cached, as the placement predicts them; its last token is never one
        of them.
        """
        size = self.block_size
        if not size:
            return 0
        slots = self._index.match(prompt).items()
        # As the placement counts them: blocks of other tiers must be loaded first.
        found = max((tokens for slot, tokens in slots if slot.tier == DEFAULT_TIER), default=0)
        return min(found, max(0, len(prompt.token_ids) - 1) // size * size)

    def asked_in_vain(self, tries: int) -> bool:
        """Whether waiting for a replay can end: one was answered, or `tries` were not."""
        return self.replayed is not None or self.replay_failures >= tries

    async def verify(self, limit_s: float) -> None:
        """Ask for a replay of the batch that was published last: the replay of another engine has another
        batch there, or none.
        """
        seen = self._replays
        self._subscriber.suspect()
        await self.until(lambda: self._replays > seen, limit_s)

    async def until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait until `condition` holds, or time is up. Returns whether it holds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not condition():  # noqa: ASYNC110  # the subscriber announces nothing
                    await asyncio.sleep(_LOOK_EVERY_S)
        return condition()

    # -- as an index --------------------------------------------------------------------------------------

    def store(self, instance: str, rank: int, event: BlockStored) -> Change:
        """Store a run, and look for the probe in it."""
        if self.search is not None:
            self.search.add(event, self._ts_s, time.time())
        return self._index.store(instance, rank, event)

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        """As the index."""
        return self._index.remove(instance, rank, event)

    def clear(self, instance: str, rank: int) -> int:
        """As the index."""
        return self._index.clear(instance, rank)

    def retire(self, instance: str, rank: int | None = None) -> int:
        """As the index."""
        return self._index.retire(instance, rank)

    def sweep(self) -> bool:
        """As the index."""
        return self._index.sweep()

    # -- as an observer -----------------------------------------------------------------------------------

    def batch_received(self, *, instance: str, rank: int, number: int, ts_s: float, events: int) -> None:  # noqa: ARG002
        self._ts_s = ts_s
        self.messages += 1

    def event_dropped(self, *, instance: str, rank: int, reason: Reason, count: int) -> None:  # noqa: ARG002
        self.dropped[reason.value] += count

    def replay(self, *, instance: str, rank: int, batches: int, complete: bool) -> None:  # noqa: ARG002
        self._replays += 1
        if complete:
            self.replayed = (self.replayed or 0) + batches
        else:
            self.replay_failures += 1

    def retired(self, *, instance: str, rank: int, why: RetireReason) -> None:  # noqa: ARG002
        self.contradicted = self.contradicted or (
            why in {RetireReason.NEW_PROCESS, RetireReason.GAP} and self.replayed is not None
        )


def port_taken(address: SourceAddress) -> bool:
    """Whether another process has the port here that an engine's publisher connects to."""
    parts = urllib.parse.urlsplit(address.endpoint)
    if not address.bind or parts.scheme != "tcp" or parts.port is None:
        return False
    host = "" if parts.hostname in {None, "*", "0.0.0.0"} else str(parts.hostname)  # noqa: S104  # not bound for long
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, parts.port))
        except OSError:
            return True
    return False
