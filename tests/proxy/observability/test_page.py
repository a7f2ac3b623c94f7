"""The page is the library's, to the byte, and others have their turn while it is written."""

import asyncio

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, generate_latest

from proxy.happenings import Checked, LegEnded, QueueLeft
from proxy.observability.counting import move
from proxy.observability.metrics import SERIES
from proxy.observability.page import SLICE_LINES, page
from proxy.observability.telling import Happenings
from proxy.phases import Phase


def registry_of(instances: int) -> CollectorRegistry:
    registry, happenings = CollectorRegistry(), Happenings()
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    for series in SERIES:
        move(series, registry, happenings, lambda _: True)
    for n in range(instances):
        happenings.tell(Checked(f"p{n}:8000", "answered"))
        happenings.tell(LegEnded(Phase.PREFILL, f"p{n}:8000", 0, 0.0, n / 10, "served", True, None, n, n, n))
    happenings.tell(QueueLeft(0.1))
    return registry


async def page_and_turns(registry: CollectorRegistry) -> tuple[bytes, int]:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        beside = tasks.create_task(others())
        written = await page(registry)
        beside.cancel()
    return written, turns


def without_objects_collected(text: bytes) -> list[bytes]:
    """The garbage collector's own numbers change meanwhile."""
    return [line for line in text.splitlines(keepends=True) if not line.startswith(b"python_gc_")]


async def test_the_page_is_what_the_library_writes() -> None:
    for instances in (0, 1, 7, SLICE_LINES, SLICE_LINES + 1):
        registry = registry_of(instances)
        written, _ = await page_and_turns(registry)
        assert without_objects_collected(written) == without_objects_collected(generate_latest(registry))


async def test_others_have_their_turn_every_few_lines() -> None:
    few, short = await page_and_turns(registry_of(0))
    many, long = await page_and_turns(registry_of(200))
    assert len(few.splitlines()) < 2 * SLICE_LINES
    assert short <= 3
    assert long >= len(many.splitlines()) // (2 * SLICE_LINES) > 5
