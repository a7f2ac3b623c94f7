"""A batch is applied only when every earlier batch of the same process was applied, or is known to be lost.

This is the pure half of a subscription: events say what happened on the sockets, actions say what to do.
Every replay starts AT the last batch applied. If the engine does not send that very payload again, another
process is behind the address, and all that was known of the rank is wrong. After a restart of this process
the same comparison proves a checkpoint. docs/adr/0002-when-an-index-is-exact.md has the transitions as a
table, with the reasons.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kvevents.decoder import Message
from kvevents.sequence import Contiguous, Gap, Position, Repeat, Restarted, digest, judge, position
from kvevents.source_events import (
    Action,
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
    Retire,
    RetireReason,
    SourceEvent,
    State,
    StateChanged,
    StopReplay,
    Suspected,
)
from kvevents.waiting import MAX_WAITING_BYTES, Waiting

# Requests for a replay that go unanswered before the rank is built from live messages alone.
_MAX_TRIES = 3
# Digests of replayed batches that are kept: as many as vLLM's own live queue holds (KVEventsConfig.hwm).
_MAX_REPLAYED = 100_000
# Replays in a row; after so many only the next probe asks for another.
_MAX_ROUNDS = 64


@dataclass(slots=True)
class _Round:
    """One replay."""

    start: int
    fresh: bool  # asked from number 0, to begin again: nothing has to be verified
    idle: bool = False  # asked because nothing had been heard for long
    received: int = 0
    applied: int = 0
    verified: bool = False
    broken: bool = False  # a batch in the middle is missing


class Source:
    """The state machine of one publisher."""

    def __init__(
        self,
        *,
        can_replay: bool,
        resume: Checkpoint | None = None,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """`can_replay`: whether there is a replay endpoint. `resume`: the index holds what was known at that
        checkpoint, and a replay has to show whether the same process is still behind the address.
        """
        self._can_replay = can_replay
        self._connected = False
        self._last: Position | None = None
        self._since_start = False  # all batches from number 0, or from a reset, up to `_last` were applied
        self._doubt = False
        self._incomplete = False  # a replay from number 0 went unanswered: the next probe asks again
        self._fruitless = False  # the last replay brought nothing new, so asking again at once would not help
        self._draining = False
        self._round: _Round | None = None
        self._rounds = 0
        self._tries = 0
        self._waiting = Waiting(max_waiting_bytes)
        self._spilled = (
            False  # live messages that waited were dropped, so another replay has to follow this one
        )
        self._replayed: dict[int, bytes] = {}  # digests of replayed batches whose live copies may still come
        self._told = State.UNKNOWN
        self._unproven = resume is not None
        if resume is not None:
            self._last = resume.position
            self._since_start = resume.since_start
            self._incomplete = resume.incomplete

    @property
    def state(self) -> State:
        """What is known of the rank, once all actions given out so far are carried out."""
        if not self._connected or self._doubt:
            return State.UNKNOWN
        if self._since_start:
            return State.EXACT
        return State.UNKNOWN if self._last is None else State.PARTIAL

    @property
    def checkpoint(self) -> Checkpoint | None:
        """How far events are applied, once all actions given out so far are carried out; None if no later
        process could continue from there.
        """
        if self._last is None or self._unproven or not self._can_replay:
            return None
        return Checkpoint(self._last, self._since_start, self._incomplete)

    @property
    def last_number(self) -> int | None:
        """The number of the last batch that was applied; None before the first."""
        return None if self._last is None else self._last.number

    @property
    def replaying(self) -> bool:
        """Whether a replay was asked for and has not ended."""
        return self._round is not None

    @property
    def incomplete(self) -> bool:
        """Whether the next probe is due although live messages come."""
        return self._can_replay and self._connected and (self._incomplete or self._doubt)

    def handle(self, event: SourceEvent) -> list[Action]:
        """The actions that follow from `event`, in order."""
        actions = list(self._handle(event))
        if self.state is not self._told:
            self._told = self.state
            actions.append(StateChanged(self._told))
        return actions

    def _handle(self, event: SourceEvent) -> Iterator[Action]:
        match event:
            case Live(message):
                yield from self._on_live(message)
            case Replayed(message):
                yield from self._on_replayed(message)
            case ReplayEnded(marker):
                yield from self._on_replay_ended(marker=marker)
            case Connected():
                yield from self._on_connected()
            case Disconnected():
                yield from self._on_disconnected()
            case Suspected():
                yield from self._on_suspected()
            case ProbeDue(settling):
                if self._connected and self._can_replay and self._round is None:
                    self._rounds = self._tries = 0
                    yield self._ask(fresh=self._incomplete, idle=not settling and not self.incomplete)
            case Damaged(damage):
                yield from self._on_damaged(damage)
            case Rebuild(replay):
                yield from self._on_rebuild(replay=replay)
            case Cleared():
                if self._last is not None:
                    self._since_start, self._incomplete = True, False

    # ---- connection ---------------------------------------------------------------------------------------

    def _on_connected(self) -> Iterator[Action]:
        self._connected = True
        self._rounds = self._tries = 0
        if self._can_replay:
            self._doubt = True
            yield self._ask()
        else:
            yield from self._forget(RetireReason.UNVERIFIED)

    def _on_disconnected(self) -> Iterator[Action]:
        self._connected = False
        self._waiting.clear()
        if self._round is not None:
            self._round = None
            yield StopReplay()

    def _on_suspected(self) -> Iterator[Action]:
        if not self._connected:
            return
        if not self._can_replay:
            yield from self._forget(RetireReason.UNVERIFIED)
            return
        self._doubt = True
        if self._round is None or self._round.received:
            self._rounds = self._tries = 0
            yield self._ask()

    def _on_rebuild(self, *, replay: bool) -> Iterator[Action]:
        if self._connected and not (replay and self._can_replay):
            # The next batch still follows the last one; what is older is not known any more.
            if self._last is not None:
                self._since_start = False
                yield Retire(RetireReason.REBUILD)
            return
        yield from self._forget(RetireReason.REBUILD)
        if self._connected:
            self._doubt = True
            self._rounds = self._tries = 0
            yield self._ask()

    def _on_damaged(self, damage: Damage) -> Iterator[Action]:
        # The next batch still follows the last one. A replay would bring the same unreadable bytes.
        self._since_start = False
        if damage is Damage.STALE and self._last is not None:
            yield Retire(RetireReason.DAMAGED)

    # ---- live messages ------------------------------------------------------------------------------------

    def _on_live(self, message: Message) -> Iterator[Action]:
        if self._round is not None:
            self._wait(message)
            return
        if self._unproven:
            return  # the replay after the handshake brings it
        heard = self._replayed.get(message.number)
        if heard is not None and heard == digest(message.payload):
            return
        verdict = judge(self._last, message.number, message.payload)
        match verdict:
            case Contiguous():
                if self._last is None:
                    self._since_start, self._incomplete = True, False
                self._doubt = False
                self._replayed.clear()
                yield self._apply(message)
            case Repeat():
                pass
            case Gap(missing=missing):
                yield from self._on_gap(message, missing)
            case Restarted():
                yield from self._forget(RetireReason.NEW_PROCESS)
                if message.number == 0:
                    self._since_start = True
                    self._doubt = self._incomplete = False
                    yield self._apply(message)
                else:
                    yield from self._on_gap(message, 0)

    def _on_gap(self, message: Message, missing: int) -> Iterator[Action]:
        known = self._last is not None or self._since_start
        if known and not self._doubt and not self._draining:
            yield GapSeen(missing)
        if self._can_replay and not self._fruitless:
            if not self._connected:
                return  # the replay after the next handshake brings it
            self._doubt = True
            self._wait(message, first=True)
            yield self._ask()
            return
        yield from self._forget(RetireReason.GAP)
        self._doubt = False
        yield self._apply(message)

    # ---- replay -------------------------------------------------------------------------------------------

    def _on_replayed(self, message: Message) -> Iterator[Action]:
        current = self._round
        if current is None or message.number < current.start:
            return
        current.received += 1
        if current.fresh and current.received == 1:
            yield from self._forget(RetireReason.REBUILD)
        if self._last is None:
            self._since_start = message.number == 0
            self._incomplete = False
            current.verified = True
            yield self._apply_replayed(current, message)
            return
        verdict = judge(self._last, message.number, message.payload)
        match verdict:
            case Repeat():
                current.verified = True
                if self._unproven:
                    self._unproven = False
                    yield Proven()
            case Contiguous() if current.verified:
                yield self._apply_replayed(current, message)
            case Gap() if current.verified:
                current.broken = True
            case Contiguous() | Gap():
                # The last batch is not in the buffer any more: all that is left begins here.
                yield from self._forget(RetireReason.GAP)
                current.verified = True
                yield self._apply_replayed(current, message)
            case Restarted() if self._rounds < _MAX_ROUNDS:
                yield from self._forget(RetireReason.NEW_PROCESS)
                yield self._ask()
            case Restarted():
                current.broken = True

    def _on_replay_ended(self, *, marker: bool) -> Iterator[Action]:
        ended, self._round = self._round, None
        if ended is None:
            return
        behind = False
        if not ended.received and not marker:
            yield ReplayDone(0, complete=False)
            if self._doubt:
                self._tries += 1
                if self._tries < _MAX_TRIES:
                    yield self._ask(fresh=ended.fresh)
                    return
                yield from self._forget(RetireReason.UNVERIFIED)
                self._incomplete = self._fruitless = True
        elif not ended.received and not ended.fresh:
            yield from self._forget(RetireReason.NEW_PROCESS)
            yield self._ask()
            return
        else:
            if not ended.received:
                yield from self._forget(RetireReason.REBUILD)
                self._since_start, self._incomplete = True, False
            whole = marker and not ended.broken
            yield ReplayDone(ended.applied, complete=whole)
            if ended.idle and whole and not ended.applied and not self._waiting:
                self._replayed.clear()  # no live copy of these is still on its way
            again = self._spilled or (ended.applied > 0 and not whole)
            spilled, self._spilled = self._spilled, False
            if again and self._rounds < _MAX_ROUNDS:
                yield self._ask()
                return
            behind = ended.broken or spilled
            self._fruitless = not ended.applied or self._rounds >= _MAX_ROUNDS
        self._doubt = behind
        yield from self._drain()
        self._fruitless = False
        if self._round is None:
            self._rounds = self._tries = 0

    def _ask(self, *, fresh: bool = False, idle: bool = False) -> Action:
        fresh = fresh or self._last is None
        start = 0 if fresh or self._last is None else self._last.number
        self._round = _Round(start, fresh, idle)
        self._rounds += 1
        return AskReplay(start)

    def _apply_replayed(self, current: _Round, message: Message) -> Action:
        current.applied += 1
        self._replayed[message.number] = digest(message.payload)
        if len(self._replayed) > _MAX_REPLAYED:
            del self._replayed[next(iter(self._replayed))]
        return self._apply(message)

    # ---- shared -------------------------------------------------------------------------------------------

    def _apply(self, message: Message) -> Action:
        self._last = position(message.number, message.payload)
        return Apply(message)

    def _forget(self, why: RetireReason) -> Iterator[Action]:
        known = self._last is not None
        self._last = None
        self._since_start = self._unproven = False
        self._replayed.clear()
        if known:
            yield Retire(why)

    def _wait(self, message: Message, *, first: bool = False) -> None:
        if not self._waiting.add(message, first=first):
            self._spilled = self._doubt = True

    def _drain(self) -> Iterator[Action]:
        self._draining = True
        while self._waiting and self._round is None:
            yield from self._on_live(self._waiting.take())
        self._draining = False
