"""Each rank that publishes KV events is followed by exactly one subscriber task."""

import asyncio
import enum
import logging
from typing import NamedTuple, Protocol

from kvevents import Observer, PrefixIndex, Reason
from kvevents.subscriber import Context, Resume, SourceAddress, Subscriber, Turns, open_context, sweep_away
from proxy.caches.address_rules import UNPROVEN_RANKS, AddressRules, NotAllowedError
from proxy.caches.capacity import Capacities
from proxy.caches.event_addresses import named_sources, read_sources
from proxy.errors import LegError
from proxy.fleet import Instance, Status
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.asking import Asker, ask
from proxy.upstream.engine_api.event_sources import EVENT_SOURCES
from proxy.upstream.engine_api.metrics import METRICS

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 5.0


class Snapshots(Protocol):
    """Keeps what is known of ranks for the next process; `snapshots.StateKeeper` does."""

    def resume(self, instance: str, rank: int) -> Resume:
        """A `Resume` that loads what an earlier process knew of a rank."""
        ...

    def follow(self, instance: str, rank: int, subscriber: Subscriber) -> None:
        """From now on `subscriber` follows the rank."""
        ...

    def unfollow(self, instance: str, rank: int) -> None:
        """The rank is not followed any more."""
        ...

    def forget(self, instance: str) -> None:
        """An instance was removed: forget what is kept of it."""
        ...


class _Unheard(enum.StrEnum):
    """Why no source of an instance is known, in the words of the log."""

    NONE = (
        "publishes no KV events, so it is chosen by load alone; start vLLM with --kv-events-config"
        ' \'{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557",'
        ' "replay_endpoint": "tcp://*:5657"}\', or name its sources'
    )
    UNTOLD = "does not tell where it publishes KV events, so it is chosen by load alone; name its sources"
    REFUSED = (
        "tells of addresses for KV events that it may not name, so it is chosen by load alone; name its "
        "sources"
    )
    UNREAD = (
        "tells where it publishes KV events in a form that is not understood, so it is chosen by load alone;"
        " name its sources"
    )


class _Untold(NamedTuple):
    """The sources of an instance are not known."""

    kind: _Unheard
    words: str
    """For `/status`."""


class _Feed:
    """One source that is followed."""

    def __init__(self, address: SourceAddress, subscriber: Subscriber, task: "asyncio.Task[None]") -> None:
        self.address = address
        self.subscriber = subscriber
        self.task = task

    @property
    def state(self) -> str:
        return str(self.subscriber.state)

    @property
    def silence(self) -> str | None:
        """Why no publisher is connected, in words; None while one is."""
        if self.subscriber.connected:
            return None
        where = self.address.endpoint
        return (
            f"no engine has connected to {where}" if self.address.bind else f"no KV events come from {where}"
        )

    @property
    def epoch(self) -> int:
        """How often another process may have been behind the address; a batch that cannot be read is no sign
        of that.
        """
        return self.subscriber.epoch - self.subscriber.damages

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


class EventFeeds:
    """Finds out where instances publish, follows them, and forgets what a removed instance had cached."""

    def __init__(
        self,
        engines: Asker,
        index: PrefixIndex,
        observer: Observer,
        tasks: TaskOwner,
        *,
        rules: AddressRules | None = None,
        ask_timeout_s: float = ASK_TIMEOUT_S,
        snapshots: Snapshots | None = None,
    ) -> None:
        """`rules`: the addresses that engines may name. `snapshots`: None if nothing is kept for the next
        process.
        """
        self._rules = rules or AddressRules()
        self._engines = engines
        self._ask_timeout_s = ask_timeout_s
        self._index = index
        self._observer = observer
        self._tasks = tasks
        self._snapshots = snapshots
        self._opened: Context | None = None
        self._turns = Turns()
        self._capacities = Capacities(engines, index, timeout_s=ask_timeout_s)
        self._asking_capacity: set[str] = set()
        self._unheard: dict[str, _Unheard] = {}
        self._sweeping = False

    async def follow(self, instance: Instance) -> None:
        """Follow exactly the sources that the instance has now. Called whenever it was found to be up."""
        found = await self._sources(instance)
        if isinstance(found, _Untold) and instance.sources:
            return  # a busy engine may not answer while its publisher goes on: what is followed stays
        wanted = {} if isinstance(found, _Untold) else {source.rank: source for source in found}
        self._look_for_none(instance, found)
        followed = {rank: feed for rank, feed in instance.sources.items() if isinstance(feed, _Feed)}
        kept = {}
        for rank, feed in followed.items():
            if wanted.get(rank) == feed.address and not feed.task.done():
                kept[rank] = feed
            else:
                await self._end(instance, rank, feed)
        for rank, source in wanted.items():
            if rank not in kept:
                kept[rank] = self._begin(instance, source)
        instance.is_followed(kept)
        self._ask_capacity(instance)

    async def unfollow(self, instance: Instance) -> None:
        """Stop following an instance and forget what it had cached."""
        feeds = instance.sources
        instance.is_followed({})
        self._capacities.forget(instance)
        for rank, feed in feeds.items():
            if isinstance(feed, _Feed):
                await self._end(instance, rank, feed)

    def forget(self, instance: Instance) -> None:
        """An instance that is not followed any more was removed: forget all that is known of it."""
        self._unheard.pop(instance.address, None)
        if self._snapshots is not None:
            self._snapshots.forget(instance.address)

    def silences(self, instance: Instance) -> dict[int, str]:
        """The followed ranks of an instance that no publisher is connected for, each with the reason in
        words.
        """
        feeds = {rank: feed for rank, feed in instance.sources.items() if isinstance(feed, _Feed)}
        return {rank: words for rank, feed in feeds.items() if (words := feed.silence) is not None}

    def uncounted(self, instance: Instance) -> dict[str, Reason]:
        """The cache groups of an instance's ranks that are not counted, in words, each with the reason."""
        ranks = (self._index.uncounted(instance.address, rank) for rank in instance.sources)
        return {words: reason for groups in ranks for words, reason in groups.items()}

    def filled(self, instance: Instance) -> set[int]:
        """The followed ranks of an instance of which any blocks are known."""
        blocks = self._index.blocks()
        return {
            slot.rank
            for slot, count in blocks.items()
            if count and slot.instance == instance.address and slot.rank in instance.sources
        }

    @property
    def _context(self) -> Context:
        """The ZeroMQ context, opened for the first source that is followed; its threads serve all
        subscribers.
        """
        if self._opened is None:
            self._opened = open_context()
        return self._opened

    def close(self) -> None:
        """End the ZeroMQ context. No source may be followed any more."""
        if self._opened is not None:
            self._opened.term()

    def suspect(self, instance: Instance, rank: int) -> None:
        """There is a sign that this rank is another process now: its subscriber finds out."""
        feed = instance.sources.get(rank)
        if isinstance(feed, _Feed):
            feed.subscriber.suspect()

    def rebuild(
        self, instance: Instance, rank: int, *, replay: bool, unless_cleared_since: int | None = None
    ) -> None:
        """What the index holds of this rank is wrong: forget it, and build it anew (`Subscriber.rebuild`)."""
        feed = instance.sources.get(rank)
        if isinstance(feed, _Feed):
            feed.subscriber.rebuild(replay=replay, unless_cleared_since=unless_cleared_since)

    def clears(self, instance: Instance) -> dict[int, int]:
        """For each followed rank, how many of its events have reset its cache."""
        return {
            rank: feed.subscriber.clears for rank, feed in instance.sources.items() if isinstance(feed, _Feed)
        }

    def _ask_capacity(self, instance: Instance) -> None:
        due = self._capacities.due(instance, came_up=instance.status not in {Status.UP, Status.ASLEEP})
        if due and instance.sources and instance.address not in self._asking_capacity:
            self._asking_capacity.add(instance.address)
            # In a task of its own: the check does not wait for this answer.
            task = self._tasks.create(
                self._capacities.learn(instance), name=f"capacity of {instance.address}"
            )
            task.add_done_callback(lambda _: self._asking_capacity.discard(instance.address))

    def _begin(self, instance: Instance, source: SourceAddress) -> _Feed:
        subscriber = Subscriber(
            instance.address,
            source,
            self._index,
            self._observer,
            context=self._context,
            turns=self._turns,
            resume=self._snapshots.resume(instance.address, source.rank) if self._snapshots else None,
        )
        if self._snapshots is not None:
            self._snapshots.follow(instance.address, source.rank, subscriber)
        task = self._tasks.create(subscriber.run(), name=f"events of {instance.address} rank {source.rank}")
        return _Feed(source, subscriber, task)

    async def _end(self, instance: Instance, rank: int, feed: _Feed) -> None:
        await feed.stop()
        if self._snapshots is not None:
            self._snapshots.unfollow(instance.address, rank)
        self._index.retire(instance.address, rank)
        if not self._sweeping:
            self._sweeping = True
            self._tasks.create(self._sweep(), name="sweep the index")

    async def _sweep(self) -> None:
        try:
            await sweep_away(self._index.sweep)
        finally:
            self._sweeping = False

    async def _sources(self, instance: Instance) -> list[SourceAddress] | _Untold:
        """The sources that the engine names, or that are part of the instance's name; or why they are not
        known.
        """
        spec = instance.spec
        if spec.event_sources:
            return named_sources(spec)
        try:
            answer = await ask(self._engines, instance.address, EVENT_SOURCES, self._ask_timeout_s)
        except LegError as error:
            return _Untold(_Unheard.UNTOLD, f"it does not tell where it publishes KV events: {error.words}")
        try:
            found = read_sources(answer, spec.host, self._rules)
        except NotAllowedError as error:
            return _Untold(_Unheard.REFUSED, f"where it says it publishes KV events is not followed: {error}")
        except ValueError as error:
            return _Untold(_Unheard.UNREAD, f"where it publishes KV events is not understood: {error}")
        if (why := await self._why_so_many(instance, len(found))) is not None:
            return _Untold(_Unheard.REFUSED, f"where it says it publishes KV events is not followed: {why}")
        return found

    async def _why_so_many(self, instance: Instance, ranks: int) -> str | None:
        """Why an engine is not believed to have that many ranks, in words; None if it is."""
        if ranks <= max(UNPROVEN_RANKS, len(instance.sources)):
            return None
        listed = await self._capacities.listed(instance.address)
        if listed is None:
            return f"it names {ranks} ranks, and its {METRICS.path} does not answer"
        return (
            None
            if listed >= ranks or not listed
            else f"it names {ranks} ranks, and its {METRICS.path} lists {listed}"
        )

    def _look_for_none(self, instance: Instance, found: list[SourceAddress] | _Untold) -> None:
        """Remember why no source is known, and log it if the reason is another than before."""
        if found and not isinstance(found, _Untold):
            instance.told_sources(None)
            self._unheard.pop(instance.address, None)
            return
        why = found if isinstance(found, _Untold) else _Untold(_Unheard.NONE, "it publishes no KV events")
        instance.told_sources(why.words)
        if self._unheard.get(instance.address) is not why.kind:
            self._unheard[instance.address] = why.kind
            log.warning(
                "%s %s %s: %s?events=tcp://HOST:PORT%s",
                instance.role,
                instance.address,
                why.kind,
                instance.address,
                "" if why.kind is _Unheard.NONE else f" ({why.words})",
            )
