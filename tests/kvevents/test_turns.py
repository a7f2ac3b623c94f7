"""Sweeping leaves the event loop to others most of the time, however many subscribers would do it."""

import asyncio
import time
from contextlib import suppress
from itertools import pairwise

from kvevents.turns import Turns, sweep_away

SLICE_S = 0.002
MIN_PAUSE_S = 3 * SLICE_S


class Waste:
    """So many slices of work, and when each was done."""

    def __init__(self, slices: int) -> None:
        self.left = slices
        self.times: list[tuple[float, float]] = []

    def sweep(self) -> bool:
        begun = time.monotonic()
        time.sleep(SLICE_S)  # the loop is held, as by real work
        self.times.append((begun, time.monotonic()))
        self.left -= 1
        return self.left > 0

    @property
    def pauses_s(self) -> list[float]:
        return [begun - ended for (_, ended), (begun, _) in pairwise(self.times)]


async def test_after_a_slice_nobody_sweeps_for_a_while() -> None:
    turns, waste = Turns(), Waste(4)
    wakes = [asyncio.Event() for _ in range(100)]

    async def subscriber(wake: asyncio.Event) -> None:
        while waste.left > 0:
            turns.sweep(waste.sweep, wake)
            with suppress(TimeoutError):
                async with asyncio.timeout(MIN_PAUSE_S / 4):
                    await wake.wait()
            wake.clear()

    async with asyncio.timeout(30):
        await asyncio.gather(*map(subscriber, wakes))
    assert len(waste.times) == 4
    assert min(waste.pauses_s) >= MIN_PAUSE_S


async def test_who_has_swept_is_woken_for_the_next_slice() -> None:
    turns, waste = Turns(), Waste(3)
    mine, other = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(30):
        turns.sweep(waste.sweep, mine)
        turns.sweep(waste.sweep, other)
        assert len(waste.times) == 1
        await mine.wait()
        assert not other.is_set()
        turns.sweep(waste.sweep, other)  # whoever comes first
        await other.wait()
    turns.sweep(waste.sweep, mine)
    assert waste.left == 0
    mine.clear()
    turns.sweep(waste.sweep, mine)  # nothing was left: no pause, and nobody is woken
    assert len(waste.times) == 4
    await asyncio.sleep(0)
    assert not mine.is_set()


async def test_all_is_swept_away_with_pauses() -> None:
    waste = Waste(4)
    async with asyncio.timeout(30):
        await sweep_away(waste.sweep)
    assert waste.left == 0
    assert min(waste.pauses_s) >= MIN_PAUSE_S
