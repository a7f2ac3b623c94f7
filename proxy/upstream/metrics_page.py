"""What is wanted of an engine's metrics page costs no more than one search through it, whatever stands there."""

from collections.abc import Iterator

MAX_LINE_CHARS = 8192
"""vLLM's longest has some hundred."""

MAX_LINES = 4096
"""Of one name: a few for each rank."""


def lines_of(page: str, name: str) -> Iterator[str]:
    """The lines that begin with `name`, but for endless ones."""
    at = 0 if page.startswith(name) else page.find("\n" + name) + 1 or -1
    for _ in range(MAX_LINES):
        if at < 0:
            return
        end = page.find("\n", at)
        line = page[at:] if end < 0 else page[at:end]
        if len(line) <= MAX_LINE_CHARS:
            yield line.rstrip("\r")
        if end < 0:
            return
        at = end + 1 if page.startswith(name, end + 1) else page.find("\n" + name, end) + 1 or -1
