"""Hostile frames straight into decoder, source, applier and index, in stories that each end with a good
engine.

Whatever a story told, the good engine that follows at its address is followed exactly, and an engine beside
it is not touched. A story needs nothing but the seed and its number.
"""

import random
import time
from collections.abc import Callable

from kvevents import Message, PrefixIndex, Reason, Slot, State, UnreadableMessage, read_live, read_replay
from kvevents.applier import Applier
from kvevents.source import Source
from kvevents.source_events import (
    Apply,
    AskReplay,
    Connected,
    Damage,
    Damaged,
    Disconnected,
    Live,
    ProbeDue,
    Replayed,
    ReplayEnded,
    Retire,
    SourceEvent,
    Suspected,
)
from kvevents.tail import Tail
from kvevents.waiting import MAX_WAITING_BYTES
from tests.fuzz.events.good_engine import GoodEngine
from tests.fuzz.events.payloads import Payloads
from tests.fuzz.events.tally import Tally
from tests.fuzz.events.watched_index import WatchedIndex, contradiction

INPUTS = 100
"""Of one story."""

_SHOWN_BYTES = 100_000
_SHOWN = 0.05  # of the stories are also told to the tail that people read
_HOSTILE = "10.0.0.1:8000"
_BESIDE = "10.0.0.2:8000"
_CALM_ROUNDS = 200  # replays after which a source that has not come to rest is stuck
_ELSE: tuple[SourceEvent, ...] = (
    Connected(),
    Disconnected(),
    Suspected(),
    ProbeDue(),
    ProbeDue(settling=True),
    ReplayEnded(marker=True),
    ReplayEnded(marker=False),
    Damaged(Damage.MISSING),
    Damaged(Damage.STALE),
)


class InProcess:
    """Tells stories of one seed to one index."""

    def __init__(self, seed: int, tally: Tally) -> None:
        self._seed = seed
        self._tally = tally
        self._payloads = Payloads()
        self._index = PrefixIndex(max_blocks=100_000)
        self._beside = GoodEngine(random.Random(f"{seed} beside"))  # repeatable, not secret
        self._beside.work(30)
        applier = Applier(_BESIDE, 0, self._index, tally)
        for number, payload in enumerate(self._beside.batches):
            for _ in applier.apply(Message(b"", number, payload)):
                pass

    def run(self, inputs: int, enough: Callable[[], bool], after: Callable[[], None]) -> None:
        """Tell stories until there were so many inputs; `after` each hundredth of them."""
        begun = time.monotonic()
        first, each = self._tally.inputs, max(INPUTS, inputs // 100)
        shown = 0
        while self._tally.inputs - first < inputs and not enough():
            self.tell(self._tally.stories)
            if (self._tally.inputs - first) // each > shown:
                shown += 1
                self._tally.sample()
                after()
        self._tally.seconds += time.monotonic() - begun

    def tell(self, number: int) -> None:
        """One story."""
        rng = random.Random(f"{self._seed} {number}")  # repeatable, not secret
        self._tally.stories += 1
        story = _Story(rng, self._payloads, self._index, self._tally, f"story {number}")
        try:
            for _ in range(INPUTS):
                self._tally.inputs += 1
                story.one_input()
            wrong = story.ends_well()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
            wrong = f"input {story.told}: {error!r}"
        wrong = wrong or self._beside.difference(self._index, Slot(_BESIDE, 0, "GPU"))
        if wrong:
            self._tally.find(f"story {number}: {wrong}")
        self._index.retire(_HOSTILE)
        while self._index.sweep():
            pass


class _Story:
    def __init__(
        self, rng: random.Random, payloads: Payloads, index: PrefixIndex, tally: Tally, name: str
    ) -> None:
        self._rng = rng
        self._payloads = payloads
        self._index = index
        self._watched = WatchedIndex(index)
        self._tally = tally
        self._name = name
        self._can_replay = rng.random() < 0.8
        waiting_bytes = rng.choice((2000, MAX_WAITING_BYTES))
        self._source = Source(can_replay=self._can_replay, max_waiting_bytes=waiting_bytes)
        self._applier = Applier(_HOSTILE, 0, self._watched, tally)
        tail = Tail(lambda _: None, as_json=rng.random() < 0.5)
        self._shown = Applier(_HOSTILE, 0, tail, tail) if rng.random() < _SHOWN else None
        self._asked: int | None = None
        self.told = 0
        self._kind = "a connection"
        self._handle(Connected())

    def one_input(self) -> None:
        rng = self._rng
        self.told += 1
        if rng.random() < 0.08:
            self._handle(rng.choice(_ELSE))
        self._kind, payload = self._payloads.make(rng)
        replay = self._source.replaying and rng.random() < 0.6
        try:
            if replay:
                frames = hostile_frames(rng, self._source.last_number, payload, replayed=True)
                message = read_replay(frames)
            else:
                message = read_live(hostile_frames(rng, self._source.last_number, payload))
        except UnreadableMessage:
            self._applier.drop(Reason.UNREADABLE, 1)
            self._tally.ends[self._kind, "no message"] += 1
            return
        if message is None:
            self._tally.ends[self._kind, "end marker"] += 1
            self._handle(ReplayEnded(marker=True))
            return
        applied = self._handle(Replayed(message) if replay else Live(message))
        self._tally.ends[
            self._kind, "applied" if applied else "replayed" if replay else "waits or ignored"
        ] += 1

    def _handle(self, event: SourceEvent) -> bool:
        with self._tally.holding(f"{self._name}, {self._kind}"):
            actions = self._source.handle(event)
        applied, damage = False, Damage.NONE
        for action in actions:
            match action:
                case Apply(message):
                    applied = True
                    damage = max(damage, self._apply(message))
                case Retire(why):
                    self._applier.retire(why)
                case AskReplay(start):
                    self._asked = start
        if damage:
            self._handle(Damaged(damage))
        return applied

    def _apply(self, message: Message) -> Damage:
        drops, events = self._tally.drops.total(), self._watched.events
        if self._shown is not None and len(message.payload) < _SHOWN_BYTES:  # its lines are as long
            for _ in self._shown.apply(message):
                pass
        unreadable, batches = self._tally.drops[Reason.UNREADABLE], self._tally.batches
        steps, what = self._applier.apply(message), f"{self._name}, {self._kind}"
        while True:
            before = time.thread_time()
            try:
                next(steps)
            except StopIteration as done:
                self._tally.held(time.thread_time() - before, what)
                damage: Damage = done.value
                break
            self._tally.held(time.thread_time() - before, what)
        if self._tally.batches == batches and self._tally.drops[Reason.UNREADABLE] != unreadable + 1:
            raise AssertionError("a message that is no batch was not counted")
        if damage and (drops, events) == (self._tally.drops.total(), self._watched.events):
            raise AssertionError("what was not understood was not counted")
        return damage

    def ends_well(self) -> str | None:
        """Let a good engine take over; what is wrong then."""
        if wrong := contradiction(self._index, _HOSTILE, 0):
            return wrong
        self._kind = "a good engine"
        engine = GoodEngine(self._rng)
        engine.work(8)
        self._handle(Disconnected())
        self._handle(Connected())
        if self._can_replay:
            for _ in range(_CALM_ROUNDS):
                if not self._source.replaying:
                    break
                self._serve(engine)
            else:
                return "it asks for replays without end"
        else:
            self._publish(engine, 0)
        already = len(engine.batches)
        engine.work(4)
        self._publish(engine, already)
        if self._source.state is not State.EXACT:
            return f"a good engine's state is {self._source.state}"
        return engine.difference(self._index, Slot(_HOSTILE, 0, "GPU")) or contradiction(
            self._index, _HOSTILE, 0
        )

    def _serve(self, engine: GoodEngine) -> None:
        start, self._asked = self._asked, None
        for number, payload in enumerate(engine.batches):
            if start is not None and number >= start:
                self._handle(Replayed(Message(b"", number, payload)))
                if self._asked is not None:
                    return  # it asks anew, on another socket
        self._handle(ReplayEnded(marker=True))

    def _publish(self, engine: GoodEngine, first: int) -> None:
        for number in range(first, len(engine.batches)):
            self._handle(Live(Message(b"", number, engine.batches[number])))


def hostile_frames(
    rng: random.Random, last: int | None, payload: bytes, *, replayed: bool = False
) -> list[bytes]:
    """The frames of a message: mostly the next number in the right form, sometimes not."""
    expected = 0 if last is None else last + 1
    number = expected
    if rng.random() < 0.35:
        number = rng.choice(
            (expected - 1, 0, expected + 1, expected + 5, expected - 2, 2**63 - 1, 2**63, 2**64 - 1)
        )
    number_bytes = (number % 2**64).to_bytes(8, "big")
    if rng.random() < 0.03:
        number_bytes = rng.choice((b"", b"\x00", number_bytes + b"\x00", rng.randbytes(8)))
    before = rng.choice(([b"", b"kv"], [b""], [])) if replayed else [rng.choice((b"", b"kv", b"x" * 300))]
    frames = [*before, number_bytes, payload]
    if rng.random() < 0.03:
        match rng.randrange(3):
            case 0:
                del frames[rng.randrange(len(frames))]
            case 1:
                frames.insert(rng.randrange(len(frames)), rng.choice(frames))
            case _:
                rng.shuffle(frames)
    return frames
