"""What the sockets said to a source, line by line, and what was done about it."""

from kvevents.decoder import Message
from kvevents.source import Source
from kvevents.source_events import (
    Action,
    Apply,
    Connected,
    Live,
    Replayed,
    ReplayEnded,
    SourceEvent,
    State,
    StateChanged,
)

EXACT, PARTIAL, UNKNOWN = (StateChanged(state) for state in (State.EXACT, State.PARTIAL, State.UNKNOWN))
MARKER, DEADLINE = ReplayEnded(marker=True), ReplayEnded(marker=False)


def msg(number: int, process: str = "p") -> Message:
    return Message(b"", number, f"{process}{number}".encode())


def live(number: int, process: str = "p") -> Live:
    return Live(msg(number, process))


def replayed(number: int, process: str = "p") -> Replayed:
    return Replayed(msg(number, process))


def apply(*numbers: int, process: str = "p") -> list[Action]:
    return [Apply(msg(number, process)) for number in numbers]


Transcript = list[tuple[SourceEvent, list[Action]]]


def play(source: Source, transcript: Transcript) -> None:
    for line, (event, actions) in enumerate(transcript):
        assert source.handle(event) == actions, f"line {line}: {event}"


def quietly(source: Source, *events: SourceEvent) -> Source:
    for event in events:
        source.handle(event)
    return source


def exact(up_to: int) -> Source:
    """A source that replays, with everything up to that number applied."""
    source = Source(can_replay=True)
    quietly(source, Connected(), *(replayed(n) for n in range(up_to + 1)), MARKER)
    assert (source.state, source.last_number) == (State.EXACT, up_to)
    return source


def heard(up_to: int) -> Source:
    """As `exact`, without a replay endpoint."""
    source = quietly(Source(can_replay=False), Connected(), *(live(n) for n in range(up_to + 1)))
    assert (source.state, source.last_number) == (State.EXACT, up_to)
    return source
