"""However many instances there are, `/metrics` does not stop the event loop for long: the page is written a
slice a turn. Each collector is read in one turn, so that lines that belong together agree.
"""

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

SLICE_LINES = 300
"""How many lines of the page are written in one turn: they take two or three milliseconds."""


async def page(registry: CollectorRegistry) -> bytes:
    """The page of a registry, byte for byte as the library's `generate_latest` writes it."""
    written: list[bytes] = []
    lines = 0
    for family in registry.collect():
        for begin in range(0, max(len(family.samples), 1), SLICE_LINES):
            written.append(_slice(family, begin))
            lines += min(len(family.samples) - begin, SLICE_LINES)
            if lines >= SLICE_LINES:
                lines = 0
                await asyncio.sleep(0)
    return b"".join(written)


def _slice(family: Metric, begin: int) -> bytes:
    part = Metric(family.name, family.documentation, family.type)
    part.samples = family.samples[begin : begin + SLICE_LINES]
    text = generate_latest(_Alone(part))
    return text if begin == 0 else text.split(b"\n", 2)[2]  # its help and type were written


class _Alone:
    """A collector of one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]
