"""Between two turns of the event loop the index holds whole events, in the order their engine published them.

The only module that speaks ZeroMQ. It does what `kvevents.source` decides. Sockets are polled and then drained
without waiting, a bounded number at a time: a receive that waits can lose a message when it is cancelled, and
one on a busy socket never lets the loop run. Subscribers that share `Turns` apply events one at a time, so that
others wait for one short turn however many of them have much to do.
"""

import asyncio
import itertools
import logging
import struct
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import zmq

from kvevents.applier import Applier, Index
from kvevents.decoder import MAX_PAYLOAD_BYTES, Message, UnreadableMessage, read_live, read_replay
from kvevents.events import Reason
from kvevents.observer import NullObserver, Observer
from kvevents.source import Source
from kvevents.source_events import (
    Apply,
    AskReplay,
    Checkpoint,
    Cleared,
    Connected,
    Damaged,
    Disconnected,
    GapSeen,
    Live,
    ProbeDue,
    Proven,
    Rebuild,
    ReplayDone,
    Replayed,
    ReplayEnded,
    Resumed,
    Retire,
    SourceEvent,
    State,
    StateChanged,
    StopReplay,
    Suspected,
)

log = logging.getLogger(__name__)

PROBE_S = 10.0
"""An idle source is asked after that time whether it is still the process we know."""
REPLAY_QUIET_S = 2.0
"""A replay is over when nothing came for so long; vLLM serves one within 0.1 s unless it is starved of CPU."""
REPLAY_LIMIT_S = 60.0
"""A replay is over after that time in any case."""

# Messages that ZeroMQ holds for us. More live ones stay with the publisher, whose own queue has 100 000 (vLLM's
# KVEventsConfig.hwm); a ROUTER that cannot send loses what it replays.
_LIVE_HWM = 1_000
_REPLAY_HWM = 100_000
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 500  # a restarted engine is heard within a second
_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 10_000
_OPEN_AGAIN_S = 1.0
_PLACE_S = 3600.0  # a replay waits for a place; then it counts as unanswered
_CONNECT_AGAIN_S = (
    2.0  # ZeroMQ gives an address up for good after bytes that are no ZMTP, or a message too large
)
_DRAIN = 256  # messages of one socket between two turns of the loop
_DRAIN_BYTES = 1 << 20  # beyond which no more of them are taken
_TURN_S = 0.002  # of applying events between two turns of the loop
_OTHERS = 4  # turns of the loop between two long ones: a request needs dozens
_REPLAYS = (
    4  # of subscribers that share turns, at once: what is replayed faster than it is applied fills memory
)
_SOCKETS = 65_535  # of one context: up to four for each source, and ZeroMQ's own limit is 1023
_numbers = itertools.count()  # names of monitors: one that was closed may be taken for a while
_LINK_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """Where one rank of an instance publishes its events; endpoints as ZeroMQ writes them."""

    rank: int
    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""
    """Only topics with this prefix are heard."""
    bind: bool = False
    """The engine connects to `endpoint`, so we bind it."""


Resume = Callable[[], Awaitable[Checkpoint | None]]
"""Brings the index to what was known of a rank before, and tells how far that is; None: nothing was. Raises nothing."""

T = TypeVar("T")


class _Look(Generic[T]):
    """Somebody's question to the index as it is at a checkpoint."""

    def __init__(self, steps: Callable[[Checkpoint], Generator[None, None, T]]) -> None:
        self.steps = steps
        self.answer: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()


Context = zmq.Context[zmq.Socket[bytes]]
"""ZeroMQ's own threads; close it with `term()` once no subscriber uses it."""


def open_context() -> Context:
    """A context with room for the sockets of some thousand sources."""
    context: Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, _SOCKETS)
    return context


class Turns:
    """Of all subscribers that share it, one has the turn."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()  # first come, first served
        self._ends_at = 0.0
        self._owed = 0
        self._replays = 0
        self._waiting: set[asyncio.Event] = set()

    def begin_replay(self, wake: asyncio.Event) -> bool:
        """Take one of few places; False: there is none, and `wake` is set when one may be free."""
        if self._replays >= _REPLAYS:
            self._waiting.add(wake)
            return False
        self._replays += 1
        return True

    def end_replay(self) -> None:
        """Give the place back."""
        self._replays -= 1
        for wake in self._waiting:
            wake.set()
        self._waiting.clear()

    @property
    def over(self) -> bool:
        """The turn has lasted long enough."""
        return time.monotonic() >= self._ends_at

    async def begin(self) -> None:
        """Wait for the turn."""
        await self._lock.acquire()
        try:
            for _ in range(self._owed):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._lock.release()
            raise
        self._ends_at = time.monotonic() + _TURN_S

    def end(self) -> None:
        """Give the turn to the next, who begins when the event loop has run others, some times after a long one."""
        self._owed = _OTHERS if self.over else 0
        self._lock.release()


class Subscriber:
    """Keeps one rank of one instance in an index what its engine says it is."""

    def __init__(
        self,
        instance: str,
        address: SourceAddress,
        index: Index,
        observer: Observer | None = None,
        *,
        context: Context | None = None,
        turns: Turns | None = None,
        resume: Resume | None = None,
        probe_s: float = PROBE_S,
        replay_quiet_s: float = REPLAY_QUIET_S,
        replay_limit_s: float = REPLAY_LIMIT_S,
    ) -> None:
        """`context`, `turns`: shared by several subscribers to save threads and to be short together; its own
        when None. `resume` is called only if there is a replay endpoint: nothing else can prove what was known.
        """
        self._instance = instance
        self._address = address
        self._index = index
        self._observer = observer if observer is not None else NullObserver()
        self._applier = Applier(instance, address.rank, index, self._observer)
        self._context = context
        self._turns = turns if turns is not None else Turns()
        self._has_turn = False
        self._has_place = False
        self._asked: int | None = None  # the start of a replay that waits for a place
        self._probe_s = probe_s
        self._replay_quiet_s = replay_quiet_s
        self._replay_limit_s = replay_limit_s
        self._state = State.UNKNOWN
        self._resume = resume if address.replay_endpoint is not None else None
        self._resumed = Resumed.NONE
        self._stale_because: str | None = None
        self._checkpoint: Checkpoint | None = None
        self._looks: list[_Look[Any]] = []
        self._running = False
        self._retirements = 0
        self._connected = False
        self._suspected = False
        self._rebuild: Rebuild | None = None
        self._wake = asyncio.Event()
        self._probe_at = 0.0
        self._connect_at = 0.0
        self._quiet_at = 0.0
        self._limit_at = 0.0

    @property
    def state(self) -> State:
        """What the slots of this rank are worth."""
        return self._state

    @property
    def retirements(self) -> int:
        """How often all that was known of this rank had to be forgotten."""
        return self._retirements

    @property
    def connected(self) -> bool:
        """A publisher has shaken hands and is not known to be gone."""
        return self._connected

    @property
    def resumed(self) -> Resumed:
        """What became of what was known from before."""
        return self._resumed

    @property
    def stale_because(self) -> str | None:
        """Why that was forgotten: as `observer.retired` says it."""
        return self._stale_because

    @property
    def checkpoint(self) -> Checkpoint | None:
        """How far the index was brought by now; None if there is nothing a later process could go on from."""
        return self._checkpoint

    async def at_rest(self, steps: Callable[[Checkpoint], Generator[None, None, T]]) -> T | None:
        """Run `steps` on the index as it is at a checkpoint: no event is applied until they have ended.

        They pause now and then for the rest of the loop. None if there is no checkpoint, or the subscriber ends.
        """
        if not self._running:
            return None
        look = _Look(steps)
        self._looks.append(look)
        self._wake.set()
        return await look.answer

    def suspect(self) -> None:
        """Somebody has evidence that another process is behind the address: verify it now."""
        self._suspected = True
        self._wake.set()

    def rebuild(self, *, replay: bool) -> None:
        """What the index holds of this rank is wrong: forget it, and build it from a replay or from live batches."""
        self._rebuild = Rebuild(replay)
        self._wake.set()

    async def run(self) -> None:
        """Follow the source until cancelled. What it had cached stays in the index: its owner retires it.

        An address that cannot be opened, and an engine that is down, are tried again without end.
        """
        context = self._context if self._context is not None else open_context()
        said = False
        try:
            while True:
                try:
                    wire = _Wire(context, self._address, self._wake)
                except (zmq.ZMQError, UnicodeEncodeError) as error:
                    if not said:
                        log.warning(
                            "cannot follow %s at %s: %s", self._instance, self._address.endpoint, error
                        )
                        said = True
                    await asyncio.sleep(_OPEN_AGAIN_S)
                    continue
                break
            try:
                self._running = True
                await self._listen(wire)
            finally:
                self._stop_replay(wire)
                wire.close()
        finally:
            self._connected = self._running = False
            self._checkpoint = None
            for look in self._looks:
                if not look.answer.done():
                    look.answer.set_result(None)
            self._looks.clear()
            self._set_state(State.UNKNOWN)
            if context is not self._context:
                context.term()

    async def _listen(self, wire: "_Wire") -> None:
        self._index.retire(self._instance, self._address.rank)
        known = await self._resume() if self._resume is not None else None
        if known is not None:
            self._resumed = Resumed.UNPROVEN
        source = Source(can_replay=self._address.replay_endpoint is not None, resume=known)
        self._connect_at = time.monotonic() + _CONNECT_AGAIN_S
        while True:
            await wire.wait(self._next_deadline(source) - time.monotonic())
            await self._begin_turn()
            try:
                await self._turn(source, wire)
            finally:
                self._end_turn()
            await asyncio.sleep(0)

    async def _turn(self, source: Source, wire: "_Wire") -> None:
        for event in self._heard(wire):
            if isinstance(event, Live) and not source.incomplete:
                self._probe_at = time.monotonic() + self._probe_s
            await self._handle(source, wire, event)
            await self._pause()
        self._ask_replay(wire)
        await self._replayed(source, wire)
        if self._suspected:
            self._suspected = False
            await self._handle(source, wire, Suspected())
        if (rebuild := self._rebuild) is not None:
            self._rebuild = None
            await self._handle(source, wire, rebuild)
        await self._check_clock(source, wire)
        self._checkpoint = source.checkpoint
        await self._show(self._checkpoint)
        if self._index.sweep():
            self._wake.set()  # a slice a turn, until all is swept

    async def _begin_turn(self) -> None:
        await self._turns.begin()
        self._has_turn = True

    def _end_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turns.end()

    async def _pause(self) -> None:
        """Let others run if this turn has lasted long enough."""
        if self._turns.over:
            self._end_turn()
            await asyncio.sleep(0)
            await self._begin_turn()

    def _heard(self, wire: "_Wire") -> list[SourceEvent]:
        """Live messages and changes of the connection, in the order they happened as far as that can be known.

        Messages are read first and the monitor second, so that no message of a new connection is seen without
        the handshake before it. Those that were there when a connection changed may be of either process: they
        are left to the replay that follows the handshake, if there is one.
        """
        messages = [
            Live(message) for frames in wire.live(_DRAIN) if (message := self._read(frames)) is not None
        ]
        links: list[SourceEvent] = [Connected() if up else Disconnected() for up in wire.links()]
        if links and self._address.replay_endpoint is not None:
            wire.discard()
            return links
        return [*messages, *links] if self._connected else [*links, *messages]

    def _read(self, frames: list[bytes]) -> Message | None:
        try:
            return read_live(frames)
        except UnreadableMessage:
            self._applier.drop(Reason.UNREADABLE, 1)
            return None

    async def _replayed(self, source: Source, wire: "_Wire") -> None:
        for _ in range(_DRAIN):
            frames = wire.next_replayed()
            if frames is None:
                return
            self._quiet_at = time.monotonic() + self._replay_quiet_s
            try:
                message = read_replay(frames)
            except UnreadableMessage:
                self._applier.drop(Reason.UNREADABLE, 1)
                continue
            if message is None:
                self._stop_replay(wire)
                await self._handle(source, wire, ReplayEnded(marker=True))
            else:
                await self._handle(source, wire, Replayed(message))
                await self._pause()

    async def _check_clock(self, source: Source, wire: "_Wire") -> None:
        now = time.monotonic()
        if self._connected:
            self._connect_at = now + _CONNECT_AGAIN_S
        elif now >= self._connect_at:
            self._connect_at = now + _CONNECT_AGAIN_S
            wire.connect_again()
        if source.replaying:
            if now >= self._limit_at or (now >= self._quiet_at and not wire.replay_is_ready()):
                self._stop_replay(wire)
                await self._handle(source, wire, ReplayEnded(marker=False))
        elif now >= self._probe_at:
            self._probe_at = now + self._probe_s
            await self._handle(source, wire, ProbeDue())

    def _next_deadline(self, source: Source) -> float:
        at = min(self._quiet_at, self._limit_at) if source.replaying else self._probe_at
        return at if self._connected else min(at, self._connect_at)

    async def _handle(self, source: Source, wire: "_Wire", event: SourceEvent) -> None:
        if isinstance(event, Connected | Disconnected):
            self._connected = isinstance(event, Connected)
        understood, cleared = True, False
        for action in source.handle(event):
            match action:
                case Apply(message):
                    before = self._applier.clears
                    understood = await self._apply(message) and understood
                    cleared = cleared or self._applier.clears > before
                case AskReplay(start):
                    self._stop_replay(wire)
                    self._asked = start
                    self._quiet_at = self._limit_at = time.monotonic() + _PLACE_S
                    self._ask_replay(wire)
                case StopReplay():
                    self._stop_replay(wire)
                case Proven():
                    if self._resumed is Resumed.UNPROVEN:
                        self._end_resuming(Resumed.RESTORED)
                case Retire(why):
                    if self._resumed is Resumed.UNPROVEN:
                        self._end_resuming(Resumed.STALE, why)
                    self._retirements += 1
                    self._applier.retire(why)
                    cleared = False
                case GapSeen(missing):
                    self._observer.gap(instance=self._instance, rank=self._address.rank, missing=missing)
                case ReplayDone(batches, complete):
                    self._probe_at = time.monotonic() + self._probe_s
                    self._observer.replay(
                        instance=self._instance, rank=self._address.rank, batches=batches, complete=complete
                    )
                case StateChanged(state):
                    self._set_state(state)
        if cleared:
            await self._handle(source, wire, Cleared())
        if not understood:
            await self._handle(source, wire, Damaged())

    def _ask_replay(self, wire: "_Wire") -> None:
        if self._asked is not None and self._turns.begin_replay(self._wake):
            start, self._asked, self._has_place = self._asked, None, True
            now = time.monotonic()
            self._quiet_at, self._limit_at = now + self._replay_quiet_s, now + self._replay_limit_s
            wire.ask_replay(start)

    def _stop_replay(self, wire: "_Wire") -> None:
        wire.stop_replay()
        self._asked = None
        if self._has_place:
            self._has_place = False
            self._turns.end_replay()

    def _end_resuming(self, how: Resumed, why: str | None = None) -> None:
        self._resumed, self._stale_because = how, why
        said = "known as before the restart" if why is None else f"what was known before is forgotten: {why}"
        log.info("%s rank %d: %s", self._instance, self._address.rank, said)
        self._observer.resumed(instance=self._instance, rank=self._address.rank, why=why)

    async def _apply(self, message: Message) -> bool:
        steps = self._applier.apply(message)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return bool(done.value)
            await self._pause()

    async def _show(self, checkpoint: Checkpoint | None) -> None:
        while self._looks:
            look = self._looks[0]
            answer = await in_slices(look.steps(checkpoint)) if checkpoint is not None else None
            self._looks.pop(0)
            if not look.answer.done():
                look.answer.set_result(answer)

    def _set_state(self, state: State) -> None:
        if state is not self._state:
            self._state = state
            self._observer.state_changed(instance=self._instance, rank=self._address.rank, state=state)


async def in_slices(steps: Generator[None, None, T]) -> T:
    """What the steps return; others get their turn after each of them."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        await asyncio.sleep(0)


class _Wire:
    """The sockets of one subscription. Opening raises ZMQError; nothing else does."""

    def __init__(self, context: Context, address: SourceAddress, wake: asyncio.Event) -> None:
        self._context = context
        self._address = address
        self._wake = wake
        self._open: list[zmq.Socket[bytes]] = []
        self._replay: zmq.Socket[bytes] | None = None
        try:
            self._sub = self._new(zmq.SUB, address.endpoint)
            self._sub.rcvhwm = _LIVE_HWM
            self._sub.setsockopt(zmq.SUBSCRIBE, address.topic.encode())
            self._sub.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            self._sub.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
            self._sub.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
            self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
            monitored = f"inproc://links-{next(_numbers)}"
            self._sub.monitor(monitored, _LINK_EVENTS)
            self._monitor = self._new(zmq.PAIR, monitored)
            self._monitor.rcvhwm = 0
            self._monitor.connect(monitored)
            if address.bind:
                self._sub.bind(address.endpoint)
            else:
                self._sub.connect(address.endpoint)
        except (zmq.ZMQError, UnicodeEncodeError):
            self.close()
            raise

    async def wait(self, timeout_s: float) -> None:
        """Until a socket is readable, somebody sets `wake`, or the time has passed."""
        if timeout_s > 0 and not any(_is_readable(socket) for socket in self._open):
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        self._wake.clear()

    def live(self, limit: int) -> list[list[bytes]]:
        """Messages that have arrived."""
        return list(_received(self._sub, limit))

    def discard(self) -> None:
        """Take all messages that have arrived, for nothing."""
        for _ in range(2 * _LIVE_HWM // _DRAIN):
            if not self.live(_DRAIN):
                return

    def links(self) -> Iterator[bool]:
        """True for a handshake, False for a connection lost, in order."""
        for frames in _received(self._monitor, _DRAIN):
            # zmq_socket_monitor(3): a 16-bit event, a 32-bit value.
            yield struct.unpack("=Hi", frames[0])[0] == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def connect_again(self) -> None:
        """Begin anew at an address that is connected to and where nobody answers."""
        if not self._address.bind:
            with suppress(zmq.ZMQError):
                self._sub.disconnect(self._address.endpoint)
            with suppress(zmq.ZMQError):
                self._sub.connect(self._address.endpoint)

    def ask_replay(self, start: int) -> None:
        """Ask on a new socket, so that nothing of an older replay can come."""
        self.stop_replay()
        endpoint = self._address.replay_endpoint
        if endpoint is None:
            return
        try:
            self._replay = self._new(zmq.DEALER, endpoint)
            self._replay.rcvhwm = _REPLAY_HWM
            self._replay.connect(endpoint)
            self._replay.send_multipart([b"", start.to_bytes(8, "big")], zmq.NOBLOCK)
        except (zmq.ZMQError, UnicodeEncodeError) as error:
            log.debug("cannot ask %s for a replay: %s", endpoint, error)

    def next_replayed(self) -> list[bytes] | None:
        """The next message of the replay, if it has arrived."""
        return next(_received(self._replay, 1), None) if self._replay is not None else None

    def replay_is_ready(self) -> bool:
        """A message of the replay has arrived."""
        return self._replay is not None and _is_readable(self._replay)

    def stop_replay(self) -> None:
        """Hear no more of the last replay."""
        if self._replay is not None:
            self._close(self._replay)
            self._replay = None

    def close(self) -> None:
        """Close all sockets at once."""
        for socket in self._open:
            if socket.type == zmq.SUB:
                # Before its monitor's reader goes: an event of the connection that nobody can read blocks
                # ZeroMQ's thread for good, and then us.
                socket.disable_monitor()
        for socket in self._open[::-1]:
            self._close(socket)

    def _new(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        self._open.append(socket)
        socket.linger = 0
        socket.maxmsgsize = MAX_PAYLOAD_BYTES  # a peer that sends more is disconnected
        if "[" in endpoint:
            socket.ipv6 = True
        asyncio.get_running_loop().add_reader(_descriptor(socket), self._wake.set)
        return socket

    def _close(self, socket: "zmq.Socket[bytes]") -> None:
        self._open.remove(socket)
        asyncio.get_running_loop().remove_reader(_descriptor(socket))
        socket.close(linger=0)


def _descriptor(socket: "zmq.Socket[bytes]") -> int:
    # Readable when the socket has something to look into; only its `events` say whether that is a message.
    return int(socket.getsockopt(zmq.FD))


def _is_readable(socket: "zmq.Socket[bytes]") -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _received(socket: "zmq.Socket[bytes]", limit: int) -> Iterator[list[bytes]]:
    left_bytes = _DRAIN_BYTES
    for _ in range(limit):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield frames
        left_bytes -= sum(map(len, frames))
        if left_bytes <= 0:
            return
