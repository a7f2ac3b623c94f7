"""Which format a file has is seen in its first line, whatever the file is called."""

import pathlib

import msgspec

from proxy.errors import TraceError
from proxy.traces.files import lines
from proxy.traces.readers import azure, burstgpt
from proxy.traces.readers.agents import read_agents
from proxy.traces.readers.azure import read_azure
from proxy.traces.readers.bailian import read_bailian
from proxy.traces.readers.base import Reader
from proxy.traces.readers.burstgpt import read_burstgpt
from proxy.traces.readers.csv_rows import columns_of
from proxy.traces.readers.lines import read_lines

READERS: dict[str, Reader] = {
    "lines": read_lines,
    "bailian": read_bailian,
    "agents": read_agents,
    "azure": read_azure,
    "burstgpt": read_burstgpt,
}

KNOWN = (
    "JSON lines with input_length (Mooncake, aiperf, Bailian, kvproxy's own), sessions of agents with "
    "requests, CSV of Azure with TIMESTAMP, ContextTokens, GeneratedTokens, or of BurstGPT with Timestamp, "
    "Model, Request tokens, Response tokens"
)


def format_of(path: pathlib.Path) -> str:
    """The format of a file, a key of `READERS`. Raises TraceError."""
    number, line = next(lines(path), (0, b""))
    if not number:
        raise TraceError(f"{path}: empty")
    if line[:1] in b"{[":
        try:
            members = msgspec.json.decode(line)
        except msgspec.DecodeError:
            # JSON over several lines is a document; a line that is cut off is judged by its reader.
            return "lines" if b'"input_length"' in line else "agents"
        if isinstance(members, list) or "requests" in members:
            return "agents"
        return "bailian" if "chat_id" in members else "lines"
    columns = columns_of(line)
    for name, needed in (("azure", azure.COLUMNS), ("burstgpt", burstgpt.COLUMNS)):
        if all(column in columns for column in needed):
            return name
    raise TraceError(f"{path}, line {number}: of no known format; known are {KNOWN}")
