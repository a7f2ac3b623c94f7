"""The LLM inference traces of Azure: when requests came and how long they were; nothing of their content.

Published in AzurePublicDataset (CC-BY): of 2023 with times as `2023-11-16 18:15:46.6805900`, of 2024 as
`2024-05-10 00:00:00.009930+00:00`, of 2025 with a column more (`NumImages`). Times without a zone are UTC.
"""

import datetime as dt
import pathlib
from collections.abc import Iterator

from proxy.traces.blocks import block_count
from proxy.traces.readers.base import Reading
from proxy.traces.readers.csv_rows import Row, rows
from proxy.traces.workload import TraceRequest

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: pathlib.Path, reading: Reading) -> Iterator[TraceRequest]:
    """The requests of a file, with prompts that share nothing. Raises TraceError."""
    block_tokens = reading.options.block_tokens
    reading.assumed.add("the file tells nothing of the prompts' content: no prompt shares a block")
    for row in rows(path, COLUMNS):
        at_s, tokens, answer = _seconds(row), row.count("ContextTokens"), row.count("GeneratedTokens")
        if not tokens or not answer:
            reading.left_out["without a prompt or an answer"] += 1
            continue
        reading.count += 1
        blocks = reading.ids.unshared(block_count(tokens, block_tokens))
        yield TraceRequest(at_s, tokens, answer, blocks, block_tokens)


def _seconds(row: Row) -> float:
    text = row.cells["TIMESTAMP"]
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise row.fault(
            "TIMESTAMP", f"expected a time such as 2023-11-16 18:15:46.68, got {text!r}"
        ) from None
    return (time if time.tzinfo is not None else time.replace(tzinfo=dt.UTC)).timestamp()
