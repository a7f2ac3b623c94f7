"""A line of JSON a request: Mooncake's, aiperf's with sessions, and our own, which has more members.

`timestamp`, `delay` and `duration` are milliseconds, `hash_ids` name the blocks of the whole prompt. Without
them a turn of a session continues the turn before it (aiperf); with them nothing is added.
"""

import pathlib
from collections.abc import Iterator
from typing import Annotated

import msgspec

from proxy.traces.blocks import MAX_TOKENS, block_count
from proxy.traces.files import fault, lines
from proxy.traces.readers.base import Reading
from proxy.traces.readers.faults import worded
from proxy.traces.workload import TraceRequest

UNKNOWN_OUTPUT = 0
"""`output_tokens` of a request whose answer's length no line tells, until all of the workload was read."""

_REFUSED_AS_WRONG = frozenset({"client_error", "unauthorized"})
_Ms = Annotated[float, msgspec.Meta(ge=0)]
_Id = Annotated[int, msgspec.Meta(ge=0)]


class Line(msgspec.Struct, omit_defaults=True):
    """What a line may have; other members are passed over."""

    timestamp: _Ms | None = None
    input_length: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    output_length: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None = None
    hash_ids: list[_Id] | None = None
    session_id: str | None = None
    delay: _Ms | None = None
    """aiperf: since the end of the turn before. Ours: since the end of `after`."""
    context_mode: str | None = None
    """aiperf: whether a turn is a whole prompt."""
    # Ours:
    block_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Which line of the file this one waits for, from 0, blank lines not counted."""
    model: str | None = None
    duration: _Ms | None = None
    """From a request's arrival to the end of its answer."""
    first_byte: _Ms | None = None
    """From a request's arrival to the first byte of its answer."""
    outcome: str | None = None


class _Turn(msgspec.Struct):
    """A turn of a session."""

    index: int
    at_s: float
    blocks: tuple[int, ...]
    block_tokens: int
    tokens: int
    """Of its prompt and its answer."""


_decode = msgspec.json.Decoder(Line).decode


def read_lines(path: pathlib.Path, reading: Reading) -> Iterator[TraceRequest]:
    """The requests of a file. Raises TraceError."""
    file = _File(reading)
    for place, (number, text) in enumerate(lines(path)):
        try:
            line = _decode(text)
        except msgspec.MsgspecError as error:
            raise fault(path, number, worded(error)) from None
        try:
            request = file.request(place, line)
        except ValueError as error:
            raise fault(path, number, error) from None
        if request is not None:
            yield request


class _File:
    """What the lines so far say of those that follow."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._indices: dict[int, int] = {}  # of requests, by the place of their line
        self._begun: dict[int, float] = {}  # when the loop of a request began, by its index
        self._turns: dict[str, _Turn] = {}  # the last one of each session

    def request(self, place: int, line: Line) -> TraceRequest | None:
        """The request of a line; None if it is left out. Raises ValueError."""
        reading = self._reading
        if line.outcome in _REFUSED_AS_WRONG:
            reading.left_out["refused for what they asked"] += 1
            return None
        if line.input_length is None:
            if line.block_tokens is None:
                raise ValueError("input_length: missing (prompts that are given as text are not read)")
            reading.left_out["whose prompt's length is not known"] += 1
            return None
        if line.output_length == 0:
            reading.left_out["without an answer"] += 1
            return None
        at_s, after, think_s = self._when(place, line)
        blocks, block_tokens, tokens = self._prompt(line, line.input_length)
        index = self._indices[place] = reading.count
        reading.count += 1
        self._begun[index] = at_s
        output = line.output_length or UNKNOWN_OUTPUT
        if line.session_id is not None:
            self._turns[line.session_id] = _Turn(index, at_s, blocks, block_tokens, tokens + output)
            if reading.options.closed and line.timestamp is not None and line.after is None:
                took_s = (line.duration or 0.0) / 1000
                reading.loops[line.session_id].add(line.timestamp / 1000 + took_s, index, at_s)
        return TraceRequest(
            at_s,
            tokens,
            output,
            blocks,
            block_tokens,
            session=line.session_id,
            after=after,
            think_s=think_s,
            model=line.model,
        )

    def _when(self, place: int, line: Line) -> tuple[float, int | None, float]:
        """`at_s`, `after` and `think_s` of a line. Raises ValueError."""
        reading = self._reading
        at_s = line.timestamp / 1000 if line.timestamp is not None else None
        turn = self._turns.get(line.session_id) if line.session_id is not None else None
        think_s = reading.thought_s((line.delay or 0.0) / 1000)
        if line.after is not None:
            if line.after >= place:
                raise ValueError(f"after: line {line.after} does not stand before this one, which is {place}")
            after = self._indices.get(line.after)
            if after is None:
                raise ValueError(f"after: line {line.after} has no request that was read")
        elif at_s is None:
            if line.session_id is None:
                raise ValueError("timestamp: missing")
            if turn is None:
                return 0.0, None, 0.0
            after = turn.index
        elif reading.options.closed and line.session_id is not None:
            waited = reading.loops[line.session_id].waited(at_s)
            if waited is None:
                return at_s, None, 0.0
            return waited.began_s, waited.after, reading.thought_s(waited.think_s)
        else:
            return at_s, None, 0.0
        if reading.options.closed is False:
            raise ValueError("delay: the file tells after what this request came, not when")
        return self._begun[after], after, think_s

    def _prompt(self, line: Line, tokens: int) -> tuple[tuple[int, ...], int, int]:
        """The blocks of a prompt, the tokens of a block and of the prompt. Raises ValueError."""
        reading = self._reading
        block_tokens = line.block_tokens or reading.options.block_tokens
        if line.hash_ids is not None:
            return *reading.blocks(line.hash_ids, tokens, block_tokens), tokens
        if line.block_tokens is not None:  # ours, of a prompt whose tokens were not known
            return *reading.blocks((), tokens, block_tokens), tokens
        reading.assumed.add("lines without hash_ids share nothing but the earlier turns of their session")
        turn = self._turns.get(line.session_id) if line.session_id is not None else None
        if turn is None or line.context_mode == "message_array_with_responses":
            return *reading.blocks((), tokens, block_tokens), tokens
        kept = turn.blocks[: turn.tokens // block_tokens]
        tokens += turn.tokens
        fresh = reading.ids.unshared(block_count(tokens, block_tokens) - len(kept))
        return (*kept, *fresh), block_tokens, tokens
