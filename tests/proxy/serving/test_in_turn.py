"""With legs in turn, held blocks are given back exactly once, whatever a leg or the client does, and no
client that left delays it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.connectors import Handoff
from proxy.connectors.plans import InTurn
from proxy.fleet import Fleet
from proxy.serving.custody import Hold
from proxy.serving.exchange import Call
from proxy.serving.handover.in_turn import InTurnHandover
from proxy.serving.handover.releases import Releases
from proxy.tasks import TaskOwner

NOBODY: Any = None  # nothing is sent here
TOLD = Handoff(None, 9, 4, "e")


class Slow(Releases):
    """Releases that take until they are let go."""

    def __init__(self) -> None:
        super().__init__(Fleet(), NOBODY, lambda _: None, lambda: 0.0)
        self.asked: list[Hold] = []
        self.goes_on = asyncio.Event()

    async def release(self, call: Call, plan: InTurn, hold: Hold, tried: Sequence[str] = ()) -> None:
        del call, plan, tried
        self.asked.append(hold)
        await self.goes_on.wait()
        hold.released()
        self.ended(hold)


class Scene:
    """One request whose legs are the test's own."""

    def __init__(self, *, waits_for_releases: bool) -> None:
        self.tasks = TaskOwner("test")
        self.releases = Slow()
        self.hold = Hold("p:1", lease_s=30.0)
        self.handover = InTurnHandover(
            self.releases, self.tasks, lambda: 0.0, grace_s=0.0, waits_for_releases=waits_for_releases
        )

    def run(self, prefill: Any, decode: Any) -> "asyncio.Task[str]":
        call: Any = Named()
        leg = self.tasks.create(prefill(), name="prefill")
        return self.tasks.create(self.handover.run(call, NOBODY, self.hold, leg, decode, []), name="run")

    async def computes(self) -> None:
        self.hold.answered(TOLD, 0.0)


class Named:
    leg_id = "test"


async def answers() -> str:
    return "answer"


async def test_whoever_waits_for_a_release_does_not_once_its_time_is_up() -> None:
    scene = Scene(waits_for_releases=True)
    began = asyncio.Event()

    async def hangs() -> str:
        began.set()
        await asyncio.Event().wait()
        return ""

    run = scene.run(scene.computes, hangs)
    await began.wait()
    run.cancel()
    await asyncio.wait({run}, timeout=10)
    assert run.cancelled(), "while the release is under way"
    assert scene.releases.asked == [scene.hold]
    scene.releases.goes_on.set()
    assert await scene.tasks.drained(5.0)
    assert scene.hold.ended


@pytest.mark.parametrize("waits", [False, True])
async def test_a_run_that_comes_to_its_end_waits_for_the_release_if_so_told(*, waits: bool) -> None:
    scene = Scene(waits_for_releases=waits)
    run = scene.run(scene.computes, answers)
    while not scene.releases.asked:  # noqa: ASYNC110  # a turn or two
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert run.done() is not waits
    scene.releases.goes_on.set()
    assert await run == "answer"
    assert await scene.tasks.drained(5.0)


async def test_blocks_of_a_leg_that_failed_unexpectedly_are_given_back() -> None:
    scene = Scene(waits_for_releases=False)
    scene.releases.goes_on.set()

    async def fails() -> None:
        await scene.computes()
        raise KeyError("kv")

    run = scene.run(fails, answers)
    await asyncio.wait({run}, timeout=10)
    assert isinstance(run.exception(), KeyError)
    assert await scene.tasks.drained(5.0)
    assert scene.releases.asked == [scene.hold]
    assert scene.hold.ended
