"""Bailian's traces (Alibaba, qwen-bailian-usagetraces-anon): JSON lines with conversations, times in seconds.

A line is a whole prompt, its earlier turns included; `hash_ids` are blocks of 16 tokens. `parent_chat_id` is
the line that a turn continues, -1 for a first one. When answers ended is not told, so in a closed loop a
call's own time counts as thought after it.
"""

import pathlib
from collections.abc import Iterator
from typing import Annotated

import msgspec

from proxy.traces.blocks import MAX_TOKENS
from proxy.traces.files import fault, lines
from proxy.traces.readers.base import Reading
from proxy.traces.readers.faults import worded
from proxy.traces.workload import TraceRequest

BLOCK_TOKENS = 16

_Id = Annotated[int, msgspec.Meta(ge=0)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class Row(msgspec.Struct):
    """A line; other members are passed over."""

    chat_id: int
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: _Tokens
    output_length: _Tokens
    parent_chat_id: int = -1
    hash_ids: list[_Id] = msgspec.field(default_factory=list)


class _Turn(msgspec.Struct):
    index: int
    came_s: float
    began_s: float
    session: str


_decode = msgspec.json.Decoder(Row).decode


def read_bailian(path: pathlib.Path, reading: Reading) -> Iterator[TraceRequest]:
    """The requests of a file. Raises TraceError."""
    turns: dict[int, _Turn] = {}
    for number, text in lines(path):
        try:
            row = _decode(text)
            if not row.input_length or not row.output_length:
                reading.left_out["without a prompt or an answer"] += 1
                continue
            blocks, block_tokens = reading.blocks(row.hash_ids, row.input_length, BLOCK_TOKENS)
        except msgspec.MsgspecError as error:
            raise fault(path, number, worded(error)) from None
        except ValueError as error:
            raise fault(path, number, error) from None
        before = turns.get(row.parent_chat_id)
        turn = _Turn(
            reading.count, row.timestamp, row.timestamp, before.session if before else str(row.chat_id)
        )
        after, think_s = None, 0.0
        if before is not None and reading.options.closed:
            reading.assumed.add("where no end is told, a call's own time counts as thought after it")
            after, turn.began_s = before.index, before.began_s
            think_s = reading.thought_s(max(row.timestamp - before.came_s, 0.0))
        turns[row.chat_id] = turn
        reading.count += 1
        yield TraceRequest(
            turn.began_s,
            row.input_length,
            row.output_length,
            blocks,
            block_tokens,
            session=turn.session,
            after=after,
            think_s=think_s,
        )
