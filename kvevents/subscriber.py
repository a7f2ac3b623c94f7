"""Between two turns of the event loop the index holds whole events, in the order in which their engine
published them; of a very long event it holds whole parts from the beginning on.

A subscriber carries out on the wire what `kvevents.source` decides. Of the subscribers that share `Turns`,
one at a time applies events, so that everything else on the loop waits for one short turn at most, however
much there is to apply.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

from kvevents.applier import Applier, Index
from kvevents.at_rest import Readings, in_slices
from kvevents.decoder import Message, UnreadableMessage, read_live, read_replay
from kvevents.events import Reason
from kvevents.observer import NullObserver, Observer
from kvevents.probe_clock import PROBE_AGAIN_S, ProbeClock
from kvevents.replays import Replay
from kvevents.source import Source
from kvevents.source_events import (
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
    RetireReason,
    SourceEvent,
    State,
    StateChanged,
    StopReplay,
    Suspected,
)
from kvevents.turns import Turns, sweep_away
from kvevents.wire import MAX_DRAINED, CannotOpenError, Context, SourceAddress, Wire, open_context

__all__ = [
    "Context",
    "Resume",
    "SourceAddress",
    "Subscriber",
    "Turns",
    "in_slices",
    "open_context",
    "sweep_away",
]

log = logging.getLogger(__name__)

PROBE_S = 10.0
"""Seconds of silence after which a source is asked whether it is still the same process."""

SETTLE_S = 1.0
"""Seconds after the first complete replay of a connection until the source is asked again, unless a live
batch comes.

A publisher may answer a replay before it has noticed the subscription; what it publishes in between reaches
nobody."""

REPLAY_QUIET_S = 2.0
"""Seconds without a message after which a replay counts as ended; vLLM serves one within 0.1 s unless it is
starved of CPU."""

REPLAY_LIMIT_S = 60.0
"""Seconds after which a replay counts as ended in any case."""

OPEN_AGAIN_S = 1.0
"""Seconds after which an address that could not be opened is tried again."""

CONNECT_AGAIN_S = 2.0
"""Seconds without a publisher after which the address is connected to anew: ZeroMQ gives an address up for
good after bytes that are no ZMTP, or a message that is too large."""

# In ascending order of what is known.
_WORTH = (State.UNKNOWN, State.PARTIAL, State.EXACT)
# Replays in a row that bring batches never heard live, before the live stream counts as broken: one may be
# due to a slow subscription, another to an accident.
_MAX_UNHEARD = 3


Resume = Callable[[], Awaitable[Checkpoint | None]]
"""Loads into the index what was known of a rank before, and returns the checkpoint of that; None: nothing was
loaded.

It is called once, before the first connection and after the rank was retired. It MUST NOT raise."""

T = TypeVar("T")


class Subscriber:
    """Keeps one rank of one instance in an index, as its engine's events describe it."""

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
        probe_again_s: float = PROBE_AGAIN_S,
        settle_s: float = SETTLE_S,
        replay_quiet_s: float = REPLAY_QUIET_S,
        replay_limit_s: float = REPLAY_LIMIT_S,
        open_again_s: float = OPEN_AGAIN_S,
        connect_again_s: float = CONNECT_AGAIN_S,
    ) -> None:
        """`instance`: any name; the index and the observer get it with every change.

        `context`, `turns`: shared by the subscribers of an event loop, which saves threads and keeps all of
        their turns short together; None: this subscriber has its own. Whoever opens a context that is shared
        ends it.

        `resume`: called only if there is a replay endpoint, since nothing else can prove what was known. The
        seconds are those of the constants of these names.
        """
        self._instance = instance
        self._address = address
        self._index = index
        self._observer = observer if observer is not None else NullObserver()
        self._applier = Applier(instance, address.rank, index, self._observer)
        self._context = context
        self._turns = turns if turns is not None else Turns()
        self._has_turn = False
        self._probes = ProbeClock(probe_s=probe_s, settle_s=settle_s, again_s=probe_again_s)
        self._replay_quiet_s = replay_quiet_s
        self._replay_limit_s = replay_limit_s
        self._open_again_s = open_again_s
        self._connect_again_s = connect_again_s
        self._state = State.UNKNOWN
        self._resume = resume if address.replay_endpoint is not None else None
        self._resumed = Resumed.NONE
        self._stale_because: RetireReason | None = None
        self._checkpoint: Checkpoint | None = None
        self._readings = Readings()
        self._running = False
        self._epoch = 0
        self._damages = 0
        self._connected = False
        self._suspected = False
        self._rebuild: Rebuild | None = None
        self._unless_cleared_since: int | None = None
        self._wake = asyncio.Event()
        self._connect_at = 0.0

    @property
    def state(self) -> State:
        """What is known of this rank."""
        return self._state

    @property
    def epoch(self) -> int:
        """How often all that was known of this rank was forgotten: a conclusion from an earlier epoch is
        void.
        """
        return self._epoch

    @property
    def damages(self) -> int:
        """How many epochs began because a batch could not be read, rather than because another process may
        publish here.
        """
        return self._damages

    @property
    def connected(self) -> bool:
        """Whether the handshake with a publisher succeeded, and it is not known to be gone."""
        return self._connected

    @property
    def resumed(self) -> Resumed:
        """What became of the blocks that `resume` loaded."""
        return self._resumed

    @property
    def stale_because(self) -> RetireReason | None:
        """Why the blocks that `resume` loaded were forgotten; None if they were not."""
        return self._stale_because

    @property
    def checkpoint(self) -> Checkpoint | None:
        """How far events have been applied; None if a later process could not continue from there."""
        return self._checkpoint

    async def at_rest(self, steps: Callable[[Checkpoint], Generator[None, None, T]]) -> T | None:
        """Run the generator that `steps` makes of a checkpoint, while no event of this rank is applied;
        returns what it returns.

        The event loop runs other tasks at each of its pauses. Returns None if there is no checkpoint, or the
        subscriber ends.
        """
        if not self._running:
            return None
        answer = self._readings.add(steps)
        self._wake.set()
        return await answer

    def suspect(self) -> None:
        """There is evidence that the source is not the same process any more: ask it now."""
        self._suspected = True
        self._wake.set()

    @property
    def clears(self) -> int:
        """How many of this rank's events have reset its cache."""
        return self._applier.clears

    def rebuild(self, *, replay: bool, unless_cleared_since: int | None = None) -> None:
        """Forget what the index holds of this rank, because it is wrong, and build it anew.

        `replay`: begin with the oldest batch that can be replayed; False: with the next live batch.
        `unless_cleared_since`: nothing is forgotten if `clears` is another number by then, since a reset has
        emptied the rank already.
        """
        self._rebuild = Rebuild(replay)
        self._unless_cleared_since = unless_cleared_since
        self._wake.set()

    async def run(self) -> None:
        """Follow the source until cancelled. The blocks of the rank stay in the index until somebody retires
        them.

        An address that cannot be opened and an engine that is down are tried again without end.
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
                    await asyncio.sleep(self._open_again_s)
                    continue
                break
            replay = Replay(
                wire, self._turns, self._wake, quiet_s=self._replay_quiet_s, limit_s=self._replay_limit_s
            )
            try:
                self._running = True
                await self._listen(wire, replay)
            finally:
                replay.stop()
                wire.close()
        finally:
            self._connected = self._running = False
            self._checkpoint = None
            self._readings.end()
            self._set_state(State.UNKNOWN)
            if context is not self._context:
                context.term()

    async def _listen(self, wire: Wire, replay: Replay) -> None:
        self._index.retire(self._instance, self._address.rank)
        known = await self._resume() if self._resume is not None else None
        if known is not None:
            self._resumed = Resumed.UNPROVEN
        source = Source(can_replay=self._address.replay_endpoint is not None, resume=known)
        self._connect_at = time.monotonic() + self._connect_again_s
        while True:
            await wire.wait(self._next_deadline(source, replay) - time.monotonic())
            await self._begin_turn()
            try:
                await self._turn(source, wire, replay)
            finally:
                self._end_turn()
            await asyncio.sleep(0)

    async def _turn(self, source: Source, wire: Wire, replay: Replay) -> None:
        for event in self._heard(wire):
            if isinstance(event, Live):
                self._probes.heard_live(time.monotonic(), incomplete=source.incomplete)
            await self._handle(source, replay, event)
            await self._pause()
        replay.begin()
        await self._replayed(source, replay)
        if self._suspected:
            self._suspected = False
            await self._handle(source, replay, Suspected())
        if (rebuild := self._rebuild) is not None:
            self._rebuild = None
            if self._unless_cleared_since in {None, self._applier.clears}:
                await self._handle(source, replay, rebuild)
        await self._check_clock(source, wire, replay)
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
        """Let other tasks run, if this turn has lasted long enough."""
        if self._turns.over:
            self._end_turn()
            await self._begin_turn()

    def _heard(self, wire: Wire) -> list[SourceEvent]:
        """Live messages and changes of the connection, in the order in which they happened as far as it can
        be known.

        Messages are read first and the monitor second, so that no message of a new connection is seen without
        the handshake before it. Messages that were there when a connection changed may be of either process:
        they are left to the replay that follows the handshake, if there is one.
        """
        messages = [
            Live(message) for frames in wire.live(MAX_DRAINED) if (message := self._read(frames)) is not None
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

    async def _replayed(self, source: Source, replay: Replay) -> None:
        for _ in range(MAX_DRAINED):
            frames = replay.next()
            if frames is None:
                return
            try:
                message = read_replay(frames)
            except UnreadableMessage:
                self._applier.drop(Reason.UNREADABLE, 1)
                continue
            if message is None:
                replay.stop()
                await self._handle(source, replay, ReplayEnded(marker=True))
            else:
                await self._handle(source, replay, Replayed(message))
                await self._pause()

    async def _check_clock(self, source: Source, wire: Wire, replay: Replay) -> None:
        now = time.monotonic()
        if self._connected:
            self._connect_at = now + self._connect_again_s
        elif now >= self._connect_at:
            self._connect_at = now + self._connect_again_s
            wire.connect_again()
        if source.replaying:
            if replay.is_over(now):
                replay.stop()
                await self._handle(source, replay, ReplayEnded(marker=False))
        elif now >= self._probes.due_at:
            if source.incomplete or self._turns.may_replay:
                await self._handle(source, replay, ProbeDue(settling=self._probes.begin_probe(now)))
            else:  # a replay now would keep live batches waiting while the index is taken to be exact
                self._probes.put_off(now)

    def _next_deadline(self, source: Source, replay: Replay) -> float:
        at = replay.ends_at if source.replaying else self._probes.due_at
        return at if self._connected else min(at, self._connect_at)

    async def _handle(self, source: Source, replay: Replay, event: SourceEvent) -> None:
        if isinstance(event, Connected | Disconnected):
            self._connected = isinstance(event, Connected)
            self._probes.link_changed()
        damage, cleared = Damage.NONE, False
        actions = source.handle(event)
        if _WORTH.index(source.state) < _WORTH.index(self._state):
            # The state changes before the blocks do: other tasks run while batches are applied.
            self._set_state(source.state)
        for action in actions:
            match action:
                case Apply(message):
                    before = self._applier.clears
                    damage = max(damage, await self._apply(message))
                    cleared = cleared or self._applier.clears > before
                case AskReplay(start):
                    replay.want(start)
                case StopReplay():
                    replay.stop()
                case Proven():
                    if self._resumed is Resumed.UNPROVEN:
                        self._end_resuming(Resumed.RESTORED)
                case Retire(why):
                    if self._resumed is Resumed.UNPROVEN:
                        self._end_resuming(Resumed.STALE, why)
                    self._epoch += 1
                    if why == RetireReason.DAMAGED:
                        self._note_damage()
                    self._applier.retire(why)
                    damage, cleared = Damage.NONE, False
                case GapSeen(missing):
                    self._observer.gap(instance=self._instance, rank=self._address.rank, missing=missing)
                case ReplayDone(batches, complete):
                    if self._probes.replay_ended(time.monotonic(), batches=batches, complete=complete):
                        damage = max(damage, self._note_unheard())
                    self._observer.replay(
                        instance=self._instance, rank=self._address.rank, batches=batches, complete=complete
                    )
                case StateChanged(state):
                    self._set_state(state)
        if cleared and not self._applier.has_slower_tiers:
            await self._handle(source, replay, Cleared())
        if damage:
            await self._handle(source, replay, Damaged(damage))

    def _note_unheard(self) -> Damage:
        """Batches that come by replay only are known late, so blocks would be counted that are long gone."""
        if self._probes.unheard < _MAX_UNHEARD:
            return Damage.NONE
        if self._probes.unheard == _MAX_UNHEARD:
            log.warning(
                (
                    "%s rank %d: its KV events come by replay only, nothing of topic %r is heard at %s: are "
                    "both right?"
                ),
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
                "%s rank %d: a batch of its KV events cannot be read and may have told of removed blocks: "
                "what was known of the rank is forgotten, now and whenever that happens; does this kvproxy "
                "know all its engine publishes?",
                self._instance,
                self._address.rank,
            )

    def _end_resuming(self, how: Resumed, why: RetireReason | None = None) -> None:
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
        if self._readings.waiting:
            self._end_turn()  # no event is applied during the copy: other subscribers need not wait
            await self._readings.serve(checkpoint)
            await self._begin_turn()

    def _set_state(self, state: State) -> None:
        if state is not self._state:
            self._state = state
            self._observer.state_changed(instance=self._instance, rank=self._address.rank, state=state)
