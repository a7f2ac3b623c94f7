"""Each rank of each instance that publishes KV events is followed by one subscriber task, and no other is."""

import asyncio
import ipaddress
import logging
import urllib.parse
from typing import Annotated, Any, Protocol

import msgspec

from kvevents import (
    Observer,
    PrefixIndex,
    Reason,
    Resume,
    SourceAddress,
    Subscriber,
    Turns,
    open_context,
    sweep_away,
)
from proxy.config import InstanceSpec
from proxy.discovery import capacity
from proxy.discovery.capacity import Capacities
from proxy.errors import LegError
from proxy.instances import MOST_RANKS, Instance, Status
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 5.0


class Engines(capacity.Engines, Protocol):
    """The part of the engine client needed here."""

    async def get_json(self, instance: str, path: str, timeout_s: float) -> Any:
        """Ask an engine about itself; raises LegError."""
        ...


class Snapshots(Protocol):
    """What outlives us of the sources."""

    def resume(self, instance: str, rank: int) -> Resume:
        """What loads what is known of a rank from before."""
        ...

    def follow(self, instance: str, rank: int, subscriber: Subscriber) -> None:
        """A rank is followed from now on."""
        ...

    def unfollow(self, instance: str, rank: int) -> None:
        """It is followed no longer."""
        ...

    def forget(self, instance: str) -> None:
        """An instance has left for good."""
        ...


class _Feed:
    """One followed source."""

    def __init__(self, address: SourceAddress, subscriber: Subscriber, task: "asyncio.Task[None]") -> None:
        self.address = address
        self.subscriber = subscriber
        self.task = task

    @property
    def state(self) -> str:
        return str(self.subscriber.state)

    @property
    def silence(self) -> str | None:
        """Why nothing can be heard, in words; None while a publisher is connected."""
        if self.subscriber.connected:
            return None
        where = self.address.endpoint
        return (
            f"no engine has connected to {where}" if self.address.bind else f"no KV events come from {where}"
        )

    @property
    def retirements(self) -> int:
        return self.subscriber.retirements - self.subscriber.damages

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


class EventFeeds:
    """Finds out where instances publish, follows them, and forgets what an instance that left had cached."""

    def __init__(
        self,
        engines: Engines,
        index: PrefixIndex,
        observer: Observer,
        tasks: TaskOwner,
        *,
        ask_timeout_s: float = ASK_TIMEOUT_S,
        snapshots: Snapshots | None = None,
    ) -> None:
        """`snapshots`: None if nothing is to outlive us."""
        self._engines = engines
        self._ask_timeout_s = ask_timeout_s
        self._index = index
        self._observer = observer
        self._tasks = tasks
        self._snapshots = snapshots
        self._context = open_context()  # its threads serve all subscribers
        self._turns = Turns()
        self._capacities = Capacities(engines, index, timeout_s=ask_timeout_s)
        self._asking_capacity: set[str] = set()
        self._silent: set[str] = set()
        self._sweeping = False

    async def follow(self, instance: Instance) -> None:
        """Make the followed sources those the instance has now; call it whenever it was found to be up."""
        told = await self._sources(instance)
        if told is None and instance.sources:
            return  # a busy engine may miss a question; its publisher goes on all the same
        wanted = {source.rank: source for source in told or []}
        if not wanted:
            self._say_once(instance)
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
        instance.sources = kept
        self._ask_capacity(instance)

    async def unfollow(self, instance: Instance) -> None:
        """Stop following an instance and forget what it had cached."""
        feeds, instance.sources = instance.sources, {}
        self._capacities.forget(instance)
        for rank, feed in feeds.items():
            if isinstance(feed, _Feed):
                await self._end(instance, rank, feed)

    def forget(self, instance: Instance) -> None:
        """An instance that is followed no longer has left for good."""
        if self._snapshots is not None:
            self._snapshots.forget(instance.address)

    def silences(self, instance: Instance) -> dict[int, str]:
        """The followed ranks of an instance that nobody publishes for, and why in words."""
        feeds = {rank: feed for rank, feed in instance.sources.items() if isinstance(feed, _Feed)}
        return {rank: words for rank, feed in feeds.items() if (words := feed.silence) is not None}

    def uncounted(self, instance: Instance) -> dict[str, Reason]:
        """The cache groups of an instance's ranks that are not counted, in words, and why."""
        ranks = (self._index.uncounted(instance.address, rank) for rank in instance.sources)
        return {words: reason for groups in ranks for words, reason in groups.items()}

    def close(self) -> None:
        """Give up ZeroMQ; nothing may be followed any more."""
        self._context.term()

    def suspect(self, instance: Instance, rank: int) -> None:
        """Something says that this rank is another process now: have its subscriber find out."""
        feed = instance.sources.get(rank)
        if isinstance(feed, _Feed):
            feed.subscriber.suspect()

    def rebuild(self, instance: Instance, rank: int, *, replay: bool) -> None:
        """What the index holds of this rank is wrong: have it forgotten and built anew."""
        feed = instance.sources.get(rank)
        if isinstance(feed, _Feed):
            feed.subscriber.rebuild(replay=replay)

    def _ask_capacity(self, instance: Instance) -> None:
        due = self._capacities.due(instance, came_up=instance.status not in {Status.UP, Status.ASLEEP})
        if due and instance.sources and instance.address not in self._asking_capacity:
            self._asking_capacity.add(instance.address)
            # Beside the check: nobody waits for this answer.
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

    async def _sources(self, instance: Instance) -> list[SourceAddress] | None:
        """What the engine tells, or was told of it; None if it does not answer."""
        spec = instance.spec
        if spec.event_sources:
            return told_sources(spec)
        try:
            answer = await self._engines.get_json(instance.address, "/kv_event_sources", self._ask_timeout_s)
            return read_sources(answer, spec.host)
        except (LegError, ValueError) as error:
            log.debug("%s does not tell its KV event sources: %s", instance.address, error)
            return None

    def _say_once(self, instance: Instance) -> None:
        if instance.address not in self._silent:
            self._silent.add(instance.address)
            log.warning(
                "%s %s publishes no KV events, so it is chosen by load alone; start vLLM with --kv-events-config"
                ' \'{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557",'
                ' "replay_endpoint": "tcp://*:5657"}\', or name its sources: %s?events=tcp://HOST:PORT',
                instance.role,
                instance.address,
                instance.address,
            )


def told_sources(spec: InstanceSpec) -> list[SourceAddress]:
    """The sources that an instance was named with."""
    return [
        SourceAddress(
            rank=told.rank,
            endpoint=told.endpoint,
            replay_endpoint=told.replay_endpoint,
            topic=told.topic,
            bind=_is_wildcard(told.endpoint),
        )
        for told in spec.event_sources
    ]


_Rank = Annotated[int, msgspec.Meta(ge=0, lt=MOST_RANKS)]


class _Source(msgspec.Struct):
    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""


def read_sources(answer: Any, host: str) -> list[SourceAddress]:
    """The sources in an engine's answer to `GET /kv_event_sources`: rank as text -> endpoints.

    A wildcard endpoint is bound by the engine, so it is reached at the instance's own host. To any other the
    engine connects, and the subscriber binds - unless it names the very host the instance is reached at, not
    loopback: that is what an engine tells that was asked to find a free port of its own. Raises ValueError if it
    is not such an answer, or names a rank from MOST_RANKS on.
    """
    try:
        told = msgspec.convert(answer, dict[_Rank, _Source], str_keys=True)
        return [_address(rank, source, host) for rank, source in sorted(told.items())]
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"not an answer of /kv_event_sources: {error}") from None


def _address(rank: int, source: _Source, host: str) -> SourceAddress:
    named = _host(source.endpoint)
    bound = (
        _is_wildcard(source.endpoint)
        or named is None
        or (named == host.strip("[]") and not _is_loopback(named))
    )
    replay = source.replay_endpoint
    return SourceAddress(
        rank=rank,
        endpoint=_at_host(source.endpoint, host) if bound else source.endpoint,
        replay_endpoint=_at_host(replay, host) if replay else None,
        topic=source.topic,
        bind=not bound,
    )


def _host(endpoint: str) -> str | None:
    return urllib.parse.urlsplit(endpoint).hostname if endpoint.startswith("tcp://") else None


def _is_wildcard(endpoint: str) -> bool:
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if not endpoint.startswith("tcp://"):
        return False
    try:
        return host == "*" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _at_host(endpoint: str, host: str) -> str:
    """The endpoint as seen from here: its wildcard replaced by the instance's host."""
    if not _is_wildcard(endpoint):
        return endpoint
    return f"tcp://{host}:{endpoint.rpartition(':')[2]}"
