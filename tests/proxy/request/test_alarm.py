"""All deadlines have one timer, and each is kept: none ends early, none later than the alarm's pause."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import DeadlineError
from proxy.request.deadlines import MIN_PAUSE_S, Alarm, Scope, within
from proxy.tasks import TaskOwner


class Loop:
    """A loop whose time passes as the test says; it counts the timers that are set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> "Timer":
        self.timers.append(Timer(at, call))
        return self.timers[-1]

    def pass_until(self, until: float) -> None:
        """Let time pass, and run what is due on its way."""
        while due := [timer for timer in self.timers if timer.at <= until]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            if not timer.cancelled:
                timer.call()
        self.now = until

    @property
    def set(self) -> int:
        return sum(not timer.cancelled for timer in self.timers)


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Ended(Scope):
    """Notes when it is ended."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(None)
        self.loop = loop
        self.at: float | None = None

    def late(self) -> Exception:
        raise NotImplementedError

    def end(self) -> None:
        self.at = self.loop.now


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.floats(0, 2)),
        st.tuples(st.just("pass"), st.floats(0, 0.5)),
        st.tuples(st.just("unset"), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(STEPS)
def test_each_deadline_is_kept(steps: list[tuple[str, Any]]) -> None:
    loop: Any = Loop()
    alarm = Alarm(loop)
    due: dict[Ended, float] = {}
    over: list[Ended] = []
    for step, much in [*steps, ("pass", 3.0)]:
        if step == "set":
            scope = Ended(loop)
            due[scope] = loop.now + much
            alarm.set(scope, due[scope])
        elif step == "unset" and due:
            scope = list(due)[much % len(due)]
            if scope.at is None:
                alarm.unset(scope)
                over.append(scope)
                due.pop(scope)
        elif step == "pass":
            loop.pass_until(loop.now + much)
        assert loop.set <= 1
    assert all(scope.at is None for scope in over)
    for scope, ends_at in due.items():
        assert scope.at is not None
        assert ends_at <= scope.at <= ends_at + MIN_PAUSE_S


def test_nothing_rings_where_nothing_is_under_way() -> None:
    loop: Any = Loop()
    alarm = Alarm(loop)
    for _ in range(1000):
        scope = Ended(loop)
        alarm.set(scope, loop.now + 10)
        loop.pass_until(loop.now + 0.1)
        alarm.unset(scope)
    loop.pass_until(loop.now + 10)
    assert loop.set == 0


async def test_what_takes_too_long_is_ended_and_nothing_beside_it() -> None:
    async def wait(seconds: float, phase_s: float) -> str:
        with within(phase_s, "p:1", "the prefill leg"):
            await asyncio.sleep(seconds)
        return "answered"

    late, answered = await asyncio.gather(wait(60, 0.01), wait(0.05, 60), return_exceptions=True)
    assert answered == "answered"
    assert isinstance(late, DeadlineError)
    assert late.words == "the prefill leg took longer than 0.01 s"


async def test_whoever_is_cancelled_beside_a_deadline_stays_cancelled() -> None:
    async def wait() -> None:
        with within(60, "p:1", "the prefill leg"):
            await asyncio.sleep(60)

    tasks = TaskOwner("test")
    task = tasks.create(wait(), name="wait")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Failing(Ended):
    def end(self) -> None:
        super().end()
        raise RuntimeError("cannot be ended")


def test_an_end_that_fails_or_ends_another_puts_off_none_of_the_others() -> None:
    loop: Any = Loop()
    alarm = Alarm(loop)
    scopes = [Failing(loop), Ended(loop), Ended(loop), Ended(loop)]

    def end_both() -> None:
        scopes[1].at = loop.now
        alarm.unset(scopes[2])

    scopes[1].end = end_both  # type: ignore[method-assign]  # it ends another
    for scope in scopes[:3]:
        alarm.set(scope, 1.0)
    alarm.set(scopes[3], 2.0)
    with pytest.raises(RuntimeError):
        loop.pass_until(1.5)
    loop.pass_until(3.0)
    assert [scope.at is not None for scope in scopes] == [True, True, False, True]
    assert 2.0 <= (scopes[3].at or 0.0) <= 2.0 + MIN_PAUSE_S
