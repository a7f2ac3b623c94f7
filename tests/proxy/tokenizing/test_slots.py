"""Slots are never too many, go round fairly, and come back from whoever leaves."""

import asyncio

import pytest

from proxy.tasks import TaskOwner
from proxy.tokenizing.slots import FairSlots


class Scene:
    """Holders of slots that end when they are told to."""

    def __init__(self, most: int = 1) -> None:
        self.slots = FairSlots()
        self.most = most
        self.order: list[str] = []
        self.tasks = TaskOwner("holders")
        self._ends: dict[str, asyncio.Event] = {}

    async def hold(self, name: str, client: str, size: int) -> None:
        async with self.slots.slot(client, size, self.most):
            self.order.append(name)
            await self._ends[name].wait()

    async def ask(self, name: str, client: str = "", size: int = 10) -> "asyncio.Task[None]":
        self._ends[name] = asyncio.Event()
        task = self.tasks.create(self.hold(name, client, size), name=name)
        await self.rest()
        return task

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.rest()

    async def rest(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_no_more_than_there_are_and_the_rest_in_fair_turns() -> None:
    scene = Scene(most=2)
    for n in range(4):
        await scene.ask(f"greedy{n}", "greedy")
    await scene.ask("modest", "modest")
    assert scene.order == ["greedy0", "greedy1"]
    await scene.end("greedy0")
    await scene.end("greedy1")
    assert "modest" in scene.order
    assert len(scene.order) == 4
    assert len(scene.slots) == 1


async def test_of_one_client_the_smallest_goes_first() -> None:
    scene = Scene()
    await scene.ask("first")
    await scene.ask("large", size=100)
    await scene.ask("small", size=1)
    await scene.end("first")
    assert scene.order == ["first", "small"]


@pytest.mark.parametrize("woken", [False, True])
async def test_a_client_that_leaves_gives_its_slot_to_the_next(woken: bool) -> None:
    scene = Scene()
    await scene.ask("first")
    leaver = await scene.ask("leaver")
    await scene.ask("next", size=20)
    if woken:
        scene._ends["first"].set()
        while scene.slots._taken and len(scene.slots) == 2:  # noqa: ASYNC110  # one turn of the loop at a time
            await asyncio.sleep(0)
    leaver.cancel()
    await scene.rest()
    await scene.end("first")
    assert scene.order == ["first", "next"]
    await scene.end("next")
    await scene.ask("last")
    assert scene.order[-1] == "last"


async def test_a_holder_that_is_cancelled_gives_it_back() -> None:
    scene = Scene()
    holder = await scene.ask("holder")
    await scene.ask("next")
    holder.cancel()
    await scene.rest()
    assert scene.order == ["holder", "next"]
