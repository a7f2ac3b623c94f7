"""Threads of the tokenizer are shared slice by slice: nobody waits for another's long text, nor for work
nobody wants."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from proxy.tasks import TaskOwner
from proxy.tokenizing.local.turns import READ_AHEAD, SLICE_BYTES, Job, Slice, Turns, at_once
from tests.helpers.service import wait_until


class ByHand(Executor):
    """Threads that do a step when they are told to."""

    def __init__(self) -> None:
        self._steps: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._steps.append((future, fn, args))
        return future

    async def step(self) -> None:
        """Do the oldest one, and let what follows from it happen."""
        future, fn, args = self._steps.pop(0)
        try:
            future.set_result(fn(*args))
        except BaseException as error:  # noqa: BLE001  # as a thread does
            future.set_exception(error)
        await rest()


async def rest() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Scene:
    """Jobs on threads that work by hand; `did` says whose slices were done."""

    def __init__(self, threads: int = 2) -> None:
        self.threads = ByHand()
        self.turns = Turns(self.threads, threads)
        self.did: list[str] = []
        self.ended: list[str] = []
        self.tasks = TaskOwner("jobs")

    def job(self, name: str, slices: int, characters: int = 100, *, fails: bool = False) -> Job[str]:
        try:
            for n in range(slices):
                yield Slice(characters, characters * (slices - n))
                if fails:
                    raise ValueError(name)
                self.did.append(name)
            return name
        finally:
            self.ended.append(name)

    async def ask(self, name: str, slices: int, client: str = "", **more: Any) -> "asyncio.Task[str]":
        task = self.tasks.create(self.turns.run(client, self.job(name, slices, **more)), name=name)
        await rest()
        return task

    async def finish(self) -> None:
        while len(self.threads):
            await self.threads.step()


async def test_a_short_text_waits_for_a_slice_and_never_for_a_long_text() -> None:
    scene = Scene()
    long = [await scene.ask(f"long{n}", 100, client=f"greedy{n}") for n in range(3)]
    for _ in range(10):
        await scene.threads.step()
    short = await scene.ask("short", 2, client="modest")
    steps = 0
    while not short.done():
        await scene.threads.step()
        steps += 1
    assert steps <= 2 * (len(long) + 1)  # of 290 that were asked for before
    assert await short == "short"
    await scene.finish()
    assert [await task for task in long] == ["long0", "long1", "long2"]
    assert len(scene.turns) == 0


async def test_clients_have_the_same_share_however_many_texts_one_of_them_sends() -> None:
    scene = Scene()
    for _ in range(20):
        await scene.ask("greedy", 50, client="greedy")
    await scene.ask("modest", 50, client="modest")
    for _ in range(60):
        await scene.threads.step()
    assert 20 <= scene.did.count("modest") <= 40
    await scene.finish()


async def test_of_one_clients_texts_the_shortest_goes_first_and_those_alike_go_one_after_the_other() -> None:
    scene = Scene(threads=1)
    await scene.ask("running", 1)
    await scene.ask("first", 3)
    await scene.ask("second", 3)
    await scene.ask("short", 1)
    await scene.finish()
    assert scene.did == ["running", "short", *["first"] * 3, *["second"] * 3]


async def test_texts_that_cannot_be_cut_never_have_all_threads() -> None:
    scene = Scene()
    for n in range(3):
        await scene.ask(f"uncut{n}", 1, client=f"c{n}", characters=SLICE_BYTES + 1)
    assert len(scene.threads) == 1
    await scene.ask("short", 1, client="modest")
    assert len(scene.threads) == 2
    await scene.finish()
    assert sorted(scene.did) == ["short", "uncut0", "uncut1", "uncut2"]


async def test_a_job_that_was_begun_elsewhere_goes_on_in_turns_and_counts_as_read() -> None:
    scene = Scene()
    for n in range(READ_AHEAD + 1):
        job = scene.job(f"begun{n}", 2, characters=SLICE_BYTES + 1)
        scene.tasks.create(scene.turns.run("client", job, next(job)), name="begun")
        await rest()
    assert len(scene.threads) == 1
    assert scene.turns.holds_back("client")
    assert not scene.turns.holds_back("another")
    await scene.finish()
    assert [scene.did.count(f"begun{n}") for n in range(READ_AHEAD + 1)] == [2] * (READ_AHEAD + 1)
    assert not scene.turns.holds_back("client")


async def test_a_job_that_has_no_turn_in_time_is_given_up() -> None:
    scene = Scene(threads=1)
    await scene.ask("running", 1)
    with pytest.raises(TimeoutError):
        await scene.turns.run("client", scene.job("late", 1), within_s=0.01)
    assert scene.ended == ["late"]
    await scene.finish()
    assert scene.did == ["running"]


async def test_with_one_thread_what_cannot_be_cut_is_done_all_the_same() -> None:
    scene = Scene(threads=1)
    task = await scene.ask("uncut", 1, characters=SLICE_BYTES + 1)
    await scene.finish()
    assert await task == "uncut"


async def test_work_that_nobody_waits_for_ends_with_its_slice() -> None:
    scene = Scene(threads=1)
    running = await scene.ask("running", 100)
    waiting = await scene.ask("waiting", 100)
    for task in (running, waiting):
        task.cancel()
    await rest()
    assert scene.ended == ["waiting"]  # the other is in its thread
    await scene.finish()
    assert scene.did == ["running"]
    assert scene.ended == ["waiting", "running"]
    after = await scene.ask("after", 1)
    await scene.finish()
    assert await after == "after"


async def test_a_job_that_fails_fails_alone() -> None:
    scene = Scene()
    failing = await scene.ask("failing", 3, fails=True)
    other = await scene.ask("other", 3)
    await scene.finish()
    with pytest.raises(ValueError, match="failing"):
        await failing
    assert await other == "other"


async def test_at_the_end_nobody_waits_for_ever() -> None:
    turns = Turns(threads=1)
    scene = Scene()
    tasks = [scene.tasks.create(turns.run("", scene.job(str(n), 2)), name=str(n)) for n in range(3)]
    await asyncio.sleep(0)
    turns.close()
    await asyncio.wait(tasks, timeout=20)
    assert all(task.done() for task in tasks)
    await wait_until(lambda: sorted(scene.ended) == ["0", "1", "2"], "the end of all jobs")


async def test_a_job_may_be_done_at_once() -> None:
    scene = Scene()
    assert at_once(scene.job("x", 3)) == "x"
    assert scene.did == ["x"] * 3


async def test_no_more_of_a_clients_texts_is_read_while_long_slices_of_it_wait() -> None:
    scene = Scene()
    read: list[str] = []

    def uncut(name: str) -> Job[str]:
        yield Slice(100, 1600)
        read.append(name)
        yield Slice(SLICE_BYTES + 1, SLICE_BYTES + 1)
        scene.did.append(name)
        return name

    names = [f"uncut{n}" for n in range(20)]
    jobs = [scene.tasks.create(scene.turns.run("greedy", uncut(name)), name=name) for name in names]
    await rest()
    most = 0
    while not scene.did.count("uncut9"):
        await scene.threads.step()
        most = max(most, len(read) - len(scene.did))
    assert most <= 1 + READ_AHEAD + 1, "one at work, those that wait, and one that was begun meanwhile"
    modest = await scene.ask("modest", 2, client="modest")
    while not modest.done():
        await scene.threads.step()
    assert scene.did.count("uncut19") == 0, "others are not held up"
    short = await scene.ask("short", 1, client="greedy")
    steps = 0
    while not short.done():
        await scene.threads.step()
        steps += 1
    assert steps <= 2 * (1 + READ_AHEAD + 1), "nor are shorter ones of its own for long"
    jobs[19].cancel()
    await scene.finish()
    assert [await job for job in jobs[:19]] == names[:19]
    assert len(scene.turns) == 0
