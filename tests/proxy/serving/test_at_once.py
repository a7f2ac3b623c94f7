"""Two legs that run at once, in every order in which they and their client may end: nothing runs on, nothing
is lost, and the blocks are counted once.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.connectors import Handoff
from proxy.fleet import Fleet
from proxy.happenings import Happening, HoldEnded
from proxy.serving.custody import HoldState
from proxy.serving.custody_at_once import Crossing
from proxy.serving.handover.at_once import AtOnceHandover
from proxy.serving.handover.releases import Releases
from proxy.tasks import TaskOwner

NOBODY: Any = None  # nothing is sent here
TOLD = Handoff(None, 9, 4, "e")


class Scene:
    """Both legs of one request, which end when they are told to."""

    def __init__(self, grace_s: float = 0.0) -> None:
        self.told: list[Happening] = []
        self.tasks = TaskOwner("test")
        self.crossing = Crossing("p:1")
        self.dropped: list[str] = []
        loop = asyncio.get_running_loop()
        self._prefill: asyncio.Future[str] = loop.create_future()
        self._decode: asyncio.Future[str] = loop.create_future()
        self.handover = AtOnceHandover(
            Releases(Fleet(), NOBODY, self.told.append, lambda: 0.0), self.tasks, grace_s=grace_s
        )
        self.prefill = self.tasks.create(self._prefill_leg(), name="prefill")
        self.decode = self.tasks.create(self._decode_leg(), name="decode")
        self.run = self.tasks.create(
            self.handover.run(self.crossing, self.prefill, self.decode, self.dropped.append), name="run"
        )

    async def _prefill_leg(self) -> str | None:
        try:
            end = await self._prefill
        except asyncio.CancelledError:
            self.crossing.lost(finished=False)
            raise
        if end == "answered":
            self.crossing.answered(TOLD, 0.0)
            return None
        self.crossing.failed()
        return end

    async def _decode_leg(self) -> str:
        end = await self._decode
        if end == "produced":
            self.crossing.pulled()
        return end

    def tell(self, event: str) -> None:
        leg, _, end = event.partition(" ")
        if leg == "client":
            self.run.cancel()
        elif not (future := {"prefill": self._prefill, "decode": self._decode}[leg]).done():
            future.set_result(end)

    async def settled(self) -> None:
        assert await self.tasks.drained(5.0)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def orders() -> Iterator[tuple[tuple[str, ...], int]]:
    """Up to three events in any order, with so many turns of the loop between them."""
    for prefill, decode in itertools.product(
        ("prefill answered", "prefill refused"), ("decode produced", "decode missed")
    ):
        for count in (1, 2, 3):
            for order in itertools.permutations((prefill, decode, "client leaves"), count):
                yield from ((order, between) for between in (0, 1, 2, 5))


@pytest.mark.parametrize(("order", "between"), list(orders()), ids=str)
async def test_in_every_order_nothing_runs_on_and_blocks_are_counted_once(
    order: tuple[str, ...], between: int
) -> None:
    scene = Scene()
    await turns(1)
    for event in order:
        scene.tell(event)
        await turns(between)
    if order == ("prefill answered",):  # the decode leg decides
        scene.tell("client leaves")
    await asyncio.wait({scene.run})
    scene.handover.leave(scene.prefill)  # as whoever has the answer does once it is over
    await scene.settled()
    assert scene.prefill.done()
    assert scene.decode.done()
    assert scene.crossing.over
    state = scene.crossing.state
    assert scene.told == ([] if state is HoldState.FAILED else [HoldEnded("p:1", state)])
    ended = not scene.decode.cancelled()
    if scene.run.cancelled():
        assert scene.dropped == ([scene.decode.result()] if ended else [])
    else:
        assert scene.dropped == []
        assert scene.run.result() in {"produced", "missed", "refused"}
        assert (scene.run.result() == "produced") is scene.crossing.produced


@pytest.mark.parametrize(
    ("order", "end", "cancelled"),
    [
        (("prefill answered", "decode produced"), "produced", ""),
        (("decode produced",), "produced", ""),
        (("prefill refused",), "refused", "decode"),
        (("decode missed",), "missed", "prefill"),
        (("prefill answered", "decode missed"), "missed", ""),
    ],
)
async def test_the_leg_that_decides_is_the_end_and_the_other_is_cancelled(
    order: tuple[str, ...], end: str, cancelled: str
) -> None:
    scene = Scene(grace_s=60.0)
    for event in order:
        scene.tell(event)
        await turns(3)
    assert await scene.run == end
    assert scene.decode.cancelled() is (cancelled == "decode")
    assert scene.prefill.cancelled() is (cancelled == "prefill")
    scene.tell("prefill answered")
    await scene.settled()


async def test_of_two_legs_that_fail_at_once_the_prefill_leg_is_told() -> None:
    scene = Scene()
    scene.tell("decode missed")
    scene.tell("prefill refused")
    assert await scene.run == "refused"
    await scene.settled()


async def test_a_prefill_leg_whose_request_is_over_has_a_moment_to_end() -> None:
    for grace_s, answers in ((60.0, True), (0.0, False)):
        scene = Scene()
        scene.tell("decode produced")
        assert await scene.run == "produced"
        AtOnceHandover(NOBODY, scene.tasks, grace_s=grace_s).leave(scene.prefill)
        if answers:
            scene.tell("prefill answered")
        await scene.settled()
        assert scene.prefill.cancelled() is not answers
        assert scene.told == [HoldEnded("p:1", "pulled")]
