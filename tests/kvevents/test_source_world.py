"""Whatever a publisher with a small buffer does, what was applied is a contiguous piece of what it said."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kvevents.decoder import Message
from kvevents.sequence import position
from kvevents.source import Source
from kvevents.source_events import (
    Apply,
    AskReplay,
    Checkpoint,
    Cleared,
    Connected,
    Disconnected,
    Live,
    ProbeDue,
    Rebuild,
    Replayed,
    Retire,
    RetireReason,
    SourceEvent,
    State,
    StopReplay,
)
from tests.kvevents.transcripts import (
    DEADLINE,
    MARKER,
    msg,
)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.sampled_from("pppppzllrdcmmbnxysk"), min_size=15, max_size=60),
    st.booleans(),
)
def test_in_the_end_exactly_what_the_publisher_says(buffer: int, script: list[str], can_replay: bool) -> None:
    """A publisher with a small buffer, losses and restarts: what was applied since the last retirement is
    always a contiguous piece of one process's batches, and once all is quiet it ends where that process is.
    """
    world = _World(buffer, Source(can_replay=can_replay))
    world.tell(Connected())
    for step in script:
        world.step(step)
        world.check()
    world.settle()
    world.check()
    if can_replay:
        assert world.source.state is not State.UNKNOWN
        assert world.applied[-1:] == world.published[-1:] or (world.started_over and not world.applied)
        if world.source.state is State.EXACT:
            resets = [n for n, message in enumerate(world.published) if message.payload.endswith(RESET)]
            since = max([0, *resets])
            assert [message for message in world.applied if message.number >= since] == world.published[
                since:
            ]


RESET = b"!"


class _World:
    """p: publish and hear; z: the same of a reset; l: publish and lose; r: restart; d, c: disconnect,
    connect; m, n: serve the replay whole or with its end lost; b: serve all but one batch; x, y: rebuild,
    from a replay or from what comes next; s: save a checkpoint; k: we restart from the last one saved.
    """

    def __init__(self, buffer: int, source: Source) -> None:
        self.source = source
        self.buffer = buffer
        self.process = 0
        self.published: list[Message] = []
        self.applied: list[Message] = []
        self.asked: int | None = None
        self.started_over = False
        self.saved: tuple[Checkpoint | None, list[Message], bool] = (None, [], False)

    def tell(self, event: SourceEvent) -> None:
        cleared = False
        for action in self.source.handle(event):
            match action:
                case Apply(message):
                    self.applied.append(message)
                    cleared = cleared or message.payload.endswith(RESET)
                case Retire(why):
                    self.applied.clear()
                    self.started_over = why == RetireReason.REBUILD
                    cleared = False
                case AskReplay(start):
                    self.asked = start
                case StopReplay():
                    self.asked = None
        if cleared:
            self.tell(Cleared())

    def step(self, step: str) -> None:
        match step:
            case "p" | "z" | "l":
                message = msg(len(self.published), f"{self.process}-")
                if step == "z":
                    message = message._replace(payload=message.payload + RESET)
                self.published.append(message)
                if step != "l" and self.source._connected:
                    self.tell(Live(self.published[-1]))
            case "r":
                self.tell(Disconnected())
                self.process += 1
                self.published = []
                self.tell(Connected())
            case "d":
                self.tell(Disconnected())
            case "c":
                self.tell(Disconnected())
                self.tell(Connected())
            case "x" | "y":
                self.tell(Rebuild(replay=step == "x"))
            case "s":
                if self.source.checkpoint is not None:
                    self.saved = self.source.checkpoint, list(self.applied), self.started_over
            case "k":
                checkpoint, applied, self.started_over = self.saved
                self.source = Source(can_replay=self.source._can_replay, resume=checkpoint)
                self.applied, self.asked = list(applied), None
                self.tell(Connected())
            case _:
                self.serve(step)

    def serve(self, how: str) -> None:
        start, self.asked = self.asked, None
        if start is None or not self.source.replaying:
            return
        left = [message for message in self.published[-self.buffer :] if message.number >= start]
        if how == "b" and len(left) > 2:
            del left[1]
        for message in left:
            self.tell(Replayed(message))
            if self.asked is not None:
                return  # it has asked anew, on another socket
        self.tell(MARKER if how != "n" else DEADLINE)

    def check(self) -> None:
        assert all(a.number + 1 == b.number for a, b in pairwise(self.applied))
        assert len({message.payload.split(b"-")[0] for message in self.applied}) <= 1
        if self.source.state is not State.UNKNOWN:
            assert all(message in self.published for message in self.applied)
        checkpoint = self.source.checkpoint
        if checkpoint is not None and self.applied:
            last = self.applied[-1]
            assert checkpoint.position == position(last.number, last.payload)
        elif checkpoint is not None:
            assert self.started_over
            assert not checkpoint.since_start

    def settle(self) -> None:
        if not self.source._connected:
            self.tell(Connected())
        for _ in range(3):
            while self.source.replaying:
                self.serve("m")
            self.tell(ProbeDue())
        while self.source.replaying:
            self.serve("m")
