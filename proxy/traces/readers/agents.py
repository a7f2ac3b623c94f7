"""Sessions of agents: what each call of a session had in its context, and which sub-agents it began.

The format is that of callanjfox/kv-cache-tester and of the sets of SemiAnalysis and aiperf ("Weka traces"): a
JSON document a session, in a file of its own or in a line. `requests` are calls (`t`, `in`, `out`, `hash_ids`
of whole blocks, `api_time`) and sub-agents with calls of their own. Calls wait for each other unless the
options say otherwise.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from proxy.errors import TraceError
from proxy.traces.blocks import MAX_TOKENS
from proxy.traces.files import fault, lines, opened
from proxy.traces.loops import Loop, Waited
from proxy.traces.readers.base import Reading
from proxy.traces.readers.faults import worded
from proxy.traces.workload import TraceRequest

SLACK_S = 1.0
"""An end this much after the next call's begin still came before it: both are rounded, to up to a second."""

_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_Id = Annotated[int, msgspec.Meta(ge=0)]


class Entry(msgspec.Struct):
    """A call, or a sub-agent with the calls that it made."""

    t: _Seconds
    type: str | None = None
    """`s`: streamed, `n`: not."""
    model: str | None = None
    tokens: _Tokens | None = msgspec.field(default=None, name="in")
    out: _Tokens | None = None
    hash_ids: list[_Id] = msgspec.field(default_factory=list)
    api_time: _Seconds | None = None
    think_time: _Seconds | None = None
    requests: list["Entry"] | None = None
    """Those of a sub-agent."""
    status: str | None = None


class Session(msgspec.Struct):
    """A document."""

    requests: list[Entry]
    id: str | None = None
    block_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    hash_id_scope: str = "local"


class _Agent:
    """One thread of calls: the session's own, or that of a sub-agent."""

    def __init__(self, parent: "_Agent | None" = None, began_s: float = 0.0, joined: bool = True) -> None:
        self.parent = parent
        self.began_s = began_s
        self.joined = joined
        """Whether its parent waits for it."""
        self.loop = Loop()
        self.last: int | None = None
        self.streamed: Entry | None = None
        """Its last call, if that was streamed."""

    def add(self, ended_s: float, index: int, began_s: float) -> None:
        """A call of this agent's has ended, for which its parents may wait too."""
        self.last = index
        agent: _Agent | None = self
        while agent is not None:
            agent.loop.add(ended_s, index, began_s)
            agent = agent.parent if agent.joined else None

    def waited(self, at_s: float) -> Waited | None:
        """What a call of this agent's had waited for: its first ones for what its parent had waited for."""
        found = self.loop.waited(at_s, SLACK_S)
        if found is None and self.parent is not None:
            found = self.parent.waited(self.began_s)
            if found is not None:
                return found._replace(think_s=found.think_s + max(at_s - self.began_s, 0.0))
        return found


class _Call(msgspec.Struct):
    at_s: float
    agent: _Agent
    entry: Entry
    where: str


_decode = msgspec.json.Decoder(Session).decode
_decode_many = msgspec.json.Decoder(Session | list[Session]).decode


def read_agents(path: pathlib.Path, reading: Reading) -> Iterator[TraceRequest]:
    """The requests of a file. Raises TraceError."""
    for place, (number, session) in enumerate(_sessions(path)):
        name = session.id or f"{path.stem}-{place}"
        try:
            yield from _requests(session, name, (path, place), reading)
        except ValueError as error:
            raise fault(path, number, error) from None


def _sessions(path: pathlib.Path) -> Iterator[tuple[int, Session]]:
    numbered = lines(path)
    number, text = next(numbered, (0, b""))
    if not number:
        return
    if _is_whole(text):
        yield number, _read(path, number, text)
        for number, text in numbered:
            yield number, _read(path, number, text)
        return
    with opened(path) as file:
        content = file.read()
    try:
        found = _decode_many(content)
    except msgspec.MsgspecError as error:
        raise TraceError(f"{path}: {worded(error)}") from None
    yield from ((number, session) for session in (found if isinstance(found, list) else [found]))


def _is_whole(text: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.DecodeError:
        return False


def _read(path: pathlib.Path, number: int, text: bytes) -> Session:
    try:
        return _decode(text)
    except msgspec.MsgspecError as error:
        raise fault(path, number, worded(error)) from None


def _requests(session: Session, name: str, scope: object, reading: Reading) -> Iterator[TraceRequest]:
    options = reading.options
    calls = sorted(_calls(session.requests, _Agent(), _is_relative(session.requests)), key=_at_s)
    shared = session.hash_id_scope == "global"
    if not shared:
        reading.assumed.add("sessions of agents share nothing with each other")
    for call in calls:
        entry, agent = call.entry, call.agent
        if _repeats(entry, agent):
            reading.left_out["that repeat the streamed call before them"] += 1
            agent.loop.ended_later(call.at_s + (entry.api_time or 0.0))
            continue
        agent.streamed = entry if entry.type == "s" else None
        if not entry.tokens or not entry.out:
            reading.left_out["without a prompt or an answer"] += 1
            continue
        try:
            blocks, block_tokens = reading.blocks(
                entry.hash_ids,
                entry.tokens,
                session.block_size or options.block_tokens,
                None if shared else scope,
            )
        except ValueError as error:
            raise ValueError(f"{call.where}.{error}") from None
        at_s, after, think_s = call.at_s, None, 0.0
        if options.closed is not False and (waited := agent.waited(call.at_s)) is not None:
            after, think_s, at_s = waited
            if entry.think_time is not None and after == agent.last:
                think_s = entry.think_time
            think_s = reading.thought_s(think_s)
        if entry.api_time is None:
            reading.assumed.add("where no api_time is told, a call's own time counts as thought after it")
        agent.add(call.at_s + (entry.api_time or 0.0), reading.count, at_s)
        reading.count += 1
        yield TraceRequest(
            at_s,
            entry.tokens,
            entry.out,
            blocks,
            block_tokens,
            session=name,
            after=after,
            think_s=think_s,
            model=entry.model,
        )


def _repeats(entry: Entry, agent: _Agent) -> bool:
    """Whether a call is one more of a streamed one. Older files have all calls twice: what they were recorded
    with lost the end of streams, so that its client asked again.
    """
    before, agent.streamed = agent.streamed, None
    return (
        entry.type == "n"
        and before is not None
        and entry.tokens == before.tokens
        and entry.hash_ids == before.hash_ids
    )


def _at_s(call: _Call) -> float:
    return call.at_s


def _is_relative(entries: Sequence[Entry]) -> bool:
    """Whether times within sub-agents count from the sub-agent's begin (as kv-cache-tester writes them), not
    from the session's (as in published sets). Only the former can be before the sub-agent's own.
    """
    return any(
        inner.t < entry.t or (inner.requests is not None and _is_relative([inner]))
        for entry in entries
        for inner in entry.requests or ()
    )


def _calls(
    entries: Sequence[Entry], agent: _Agent, relative: bool, where: str = "", base_s: float = 0.0
) -> Iterator[_Call]:
    for place, entry in enumerate(entries):
        here = f"{where}requests[{place}]"
        at_s = base_s + entry.t
        if entry.requests is None:
            yield _Call(at_s, agent, entry, here)
            continue
        below = _Agent(agent, at_s, joined=entry.status != "async_launched")
        yield from _calls(entry.requests, below, relative, f"{here}.", at_s if relative else base_s)
