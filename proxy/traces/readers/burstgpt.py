"""BurstGPT: two months of calls of ChatGPT and GPT-4, their times in seconds; nothing of their content.

Published by HPMLL (CC-BY). Files of the first release have six columns; those of the second have also
`Session ID` (for conversations) and `Elapsed time` (seconds until the whole answer). Calls without an answer
failed.
"""

import math
import pathlib
from collections.abc import Iterator

from proxy.traces.blocks import block_count
from proxy.traces.readers.base import Reading
from proxy.traces.readers.csv_rows import Row, rows
from proxy.traces.workload import TraceRequest

SLACK_S = 1.0
"""Times are whole seconds, so an end may seem to lie this much behind the turn that follows it."""

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens")


def read_burstgpt(path: pathlib.Path, reading: Reading) -> Iterator[TraceRequest]:
    """The requests of a file, with prompts that share nothing. Raises TraceError."""
    block_tokens = reading.options.block_tokens
    reading.assumed.add("the file tells nothing of the prompts' content: no prompt shares a block")
    for row in rows(path, COLUMNS):
        at_s = _seconds(row, "Timestamp")
        tokens, answer = row.count("Request tokens"), row.count("Response tokens")
        if not tokens or not answer:
            reading.left_out["that failed: without a prompt or an answer"] += 1
            continue
        session = row.cells.get("Session ID") or None
        after, think_s, came_s = None, 0.0, at_s
        if session is not None and reading.options.closed:
            loop = reading.loops[session]
            if (waited := loop.waited(at_s, SLACK_S)) is not None:
                after, came_s = waited.after, waited.began_s
                think_s = reading.thought_s(waited.think_s)
            took_s = _seconds(row, "Elapsed time") if row.cells.get("Elapsed time") else 0.0
            loop.add(at_s + took_s, reading.count, came_s)
        reading.count += 1
        yield TraceRequest(
            came_s,
            tokens,
            answer,
            reading.ids.unshared(block_count(tokens, block_tokens)),
            block_tokens,
            session=session,
            after=after,
            think_s=think_s,
            model=row.cells["Model"] or None,
        )


def _seconds(row: Row, column: str) -> float:
    text = row.cells[column]
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise row.fault(column, f"expected seconds, got {text!r}")
    return seconds
