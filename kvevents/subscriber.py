"""Between two turns of the event loop the index holds whole events, in the order their engine published them; of very
long ones whole parts, each the beginning of what follows.

It does on the wire what `kvevents.source` decides. Subscribers that share `Turns` apply events one at a time, so that
others wait for one short turn however many of them have much to do.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from kvevents.applier import Applier, Index
from kvevents.decoder import Message, UnreadableMessage, read_live, read_replay
from kvevents.events import Reason
from kvevents.observer import NullObserver, Observer
from kvevents.source import Source
from kvevents.source_events import (
    DAMAGED,
    Apply,
    AskReplay,
    Checkpoint,
    Cleared,
    Connected,
    Damage,
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
from kvevents.turns import Turns
from kvevents.wire import DRAIN, CannotOpenError, Context, SourceAddress, Wire, open_context

log = logging.getLogger(__name__)

PROBE_S = 10.0
"""An idle source is asked after that time whether it is still the process we know."""
SETTLE_S = 1.0
"""A publisher may answer a replay before it knows of our subscription, and what it publishes in between reaches nobody:
so long after the first whole replay of a connection it is asked again, if no batch has told by then."""
REPLAY_QUIET_S = 2.0
"""A replay is over when nothing came for so long; vLLM serves one within 0.1 s unless it is starved of CPU."""
REPLAY_LIMIT_S = 60.0
"""A replay is over after that time in any case."""

_OPEN_AGAIN_S = 1.0
_PROBE_AGAIN_S = 1.0
_UNHEARD = 3  # the first may have been lost before the publisher knew of us, another by accident
_PLACE_S = 3600.0  # a replay waits for a place; then it counts as unanswered
_CONNECT_AGAIN_S = (
    2.0  # ZeroMQ gives an address up for good after bytes that are no ZMTP, or a message too large
)


Resume = Callable[[], Awaitable[Checkpoint | None]]
"""Brings the index to what was known of a rank before, and tells how far that is; None: nothing was. Raises nothing."""

T = TypeVar("T")


class _Look(Generic[T]):
    """Somebody's question to the index as it is at a checkpoint."""

    def __init__(self, steps: Callable[[Checkpoint], Generator[None, None, T]]) -> None:
        self.steps = steps
        self.answer: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()


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
        settle_s: float = SETTLE_S,
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
        self._settle_s = settle_s
        self._settle_at: float | None = None  # None until a replay of this connection was whole
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
        self._damages = 0
        self._connected = False
        self._suspected = False
        self._rebuild: Rebuild | None = None
        self._wake = asyncio.Event()
        self._unheard = 0  # replays of this connection that brought what was never heard live, in a row
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
    def damages(self) -> int:
        """How many of these were not for another process, but for a batch of the same that could not be read."""
        return self._damages

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
                    wire = Wire(context, self._address, self._wake)
                except CannotOpenError as error:
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

    async def _listen(self, wire: "Wire") -> None:
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

    async def _turn(self, source: Source, wire: "Wire") -> None:
        for event in self._heard(wire):
            if isinstance(event, Live):
                self._unheard = 0
            if isinstance(event, Live) and not source.incomplete:
                self._probe_at = time.monotonic() + self._probe_s
                self._settle_at = math.inf
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
        self._turns.sweep(self._index.sweep, self._wake)

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
            await self._begin_turn()

    def _heard(self, wire: "Wire") -> list[SourceEvent]:
        """Live messages and changes of the connection, in the order they happened as far as that can be known.

        Messages are read first and the monitor second, so that no message of a new connection is seen without
        the handshake before it. Those that were there when a connection changed may be of either process: they
        are left to the replay that follows the handshake, if there is one.
        """
        messages = [
            Live(message) for frames in wire.live(DRAIN) if (message := self._read(frames)) is not None
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

    async def _replayed(self, source: Source, wire: "Wire") -> None:
        for _ in range(DRAIN):
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

    async def _check_clock(self, source: Source, wire: "Wire") -> None:
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
            if source.incomplete or self._turns.may_replay:
                self._probe_at = now + self._probe_s
                settling = self._settle_at is not None and now >= self._settle_at
                if settling:
                    self._settle_at = math.inf
                await self._handle(source, wire, ProbeDue(settling=settling))
            else:  # asked now, live batches would wait for the answer while the index is taken to be exact
                self._probe_at = now + _PROBE_AGAIN_S

    def _next_deadline(self, source: Source) -> float:
        at = min(self._quiet_at, self._limit_at) if source.replaying else self._probe_at
        return at if self._connected else min(at, self._connect_at)

    async def _handle(self, source: Source, wire: "Wire", event: SourceEvent) -> None:
        if isinstance(event, Connected | Disconnected):
            self._connected = isinstance(event, Connected)
            self._settle_at = None
            self._unheard = 0
        damage, cleared = Damage.NONE, False
        for action in source.handle(event):
            match action:
                case Apply(message):
                    before = self._applier.clears
                    damage = max(damage, await self._apply(message))
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
                    if why == DAMAGED:
                        self._note_damage()
                    self._applier.retire(why)
                    damage, cleared = Damage.NONE, False
                case GapSeen(missing):
                    self._observer.gap(instance=self._instance, rank=self._address.rank, missing=missing)
                case ReplayDone(batches, complete):
                    now = time.monotonic()
                    if self._settle_at is not None and batches:  # not the first of this connection
                        damage = max(damage, self._note_unheard())
                    if complete and self._settle_at is None:
                        self._settle_at = now + self._settle_s
                    self._probe_at = min(now + self._probe_s, self._settle_at or math.inf)
                    self._observer.replay(
                        instance=self._instance, rank=self._address.rank, batches=batches, complete=complete
                    )
                case StateChanged(state):
                    self._set_state(state)
        if cleared and not self._applier.has_slower_tiers:
            await self._handle(source, wire, Cleared())
        if damage:
            await self._handle(source, wire, Damaged(damage))

    def _note_unheard(self) -> Damage:
        """What is not heard live is known late, so blocks that are long gone would be counted."""
        self._unheard += 1
        if self._unheard < _UNHEARD:
            return Damage.NONE
        if self._unheard == _UNHEARD:
            log.warning(
                "%s rank %d: its KV events come by replay only, nothing of topic %r is heard at %s: are both right?",
                self._instance,
                self._address.rank,
                self._address.topic,
                self._address.endpoint,
            )
        return Damage.MISSING

    def _note_damage(self) -> None:
        self._damages += 1
        if self._damages == 1:
            log.warning(
                "%s rank %d: a batch of its KV events cannot be read and may have told of removed blocks: what was known of"
                " the rank is forgotten, now and whenever that happens; does this kvproxy know all its engine publishes?",
                self._instance,
                self._address.rank,
            )

    def _ask_replay(self, wire: "Wire") -> None:
        if self._asked is not None and self._turns.begin_replay(self._wake):
            start, self._asked, self._has_place = self._asked, None, True
            now = time.monotonic()
            self._quiet_at, self._limit_at = now + self._replay_quiet_s, now + self._replay_limit_s
            wire.ask_replay(start)

    def _stop_replay(self, wire: "Wire") -> None:
        wire.stop_replay()
        if self._asked is not None:
            self._asked = None
            self._turns.leave(self._wake)
        if self._has_place:
            self._has_place = False
            self._turns.end_replay()

    def _end_resuming(self, how: Resumed, why: str | None = None) -> None:
        self._resumed, self._stale_because = how, why
        said = "known as before the restart" if why is None else f"what was known before is forgotten: {why}"
        log.info("%s rank %d: %s", self._instance, self._address.rank, said)
        self._observer.resumed(instance=self._instance, rank=self._address.rank, why=why)

    async def _apply(self, message: Message) -> Damage:
        steps = self._applier.apply(message)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                damage: Damage = done.value
                return damage
            await self._pause()

    async def _show(self, checkpoint: Checkpoint | None) -> None:
        if self._looks:
            self._end_turn()  # nothing is applied here meanwhile, and others need not wait for the copy
            await self._answer_looks(checkpoint)
            await self._begin_turn()

    async def _answer_looks(self, checkpoint: Checkpoint | None) -> None:
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
