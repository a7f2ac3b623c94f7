"""The decode leg is sent once the prefill leg is answered, and the hold always ends, whenever the client
leaves.

A prefill leg outlives its client by some seconds: only its answer names the blocks that are to be released.
`serving/custody.py` has the states of a hold.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from proxy.connectors.plans import InTurn
from proxy.serving.custody import Due, Hold, HoldState
from proxy.serving.exchange import Call
from proxy.serving.handover.releases import Releases
from proxy.tasks import TaskOwner

T = TypeVar("T")


class InTurnHandover:
    """Carries out plans of legs that go one after the other."""

    def __init__(
        self,
        releases: Releases,
        tasks: TaskOwner,
        clock: Callable[[], float],
        *,
        grace_s: float,
        waits_for_releases: bool = False,
    ) -> None:
        """`grace_s`: how long a prefill leg may still run whose client has left. `waits_for_releases`: `run`
        returns only once a hold that is due for release was given back.
        """
        self._releases = releases
        self._tasks = tasks
        self._clock = clock
        self._grace_s = grace_s
        self._waits = waits_for_releases

    async def run(
        self,
        call: Call,
        plan: InTurn,
        hold: Hold,
        prefill: "asyncio.Task[T | None]",
        decode: Callable[[], Awaitable[T]],
        tried: Sequence[str],
    ) -> T:
        """What the request ends with: the prefill leg's result if that leg failed, else the decode leg's.

        The task `prefill` has just begun; it tells `hold` of its end, and ends with None on success. Then
        `decode` is called, which sends the decode leg. `tried`: the decode instances that the hold was
        offered to, filled by `decode`. May be cancelled at any moment.
        """
        over: asyncio.Future[None] = prefill.get_loop().create_future()

        def ended(_leg: object) -> None:
            if not over.done():
                over.set_result(None)
            self._count(hold)

        prefill.add_done_callback(ended)
        try:
            await over  # not the leg itself, which outlives a client that leaves
            end = prefill.result()
        except asyncio.CancelledError:
            if not prefill.cancelled():
                abandoned = self._abandon(call, plan, hold, prefill)
                self._tasks.create(abandoned, name=f"abandon prefill {call.leg_id}")
            raise
        except BaseException:  # unexpected, but no reason to leave blocks behind
            if hold.state is HoldState.HELD:
                self._settle(call, plan, hold, tried)
            raise
        if end is not None:
            return end
        try:
            answer = await decode()
        except BaseException:
            self._settle(call, plan, hold, tried)
            raise
        released = self._settle(call, plan, hold, tried)
        if self._waits and released is not None:
            await asyncio.shield(released)
        return answer

    def _settle(
        self, call: Call, plan: InTurn, hold: Hold, tried: Sequence[str]
    ) -> "asyncio.Task[None] | None":
        """No decode leg will carry the hold any more; returns its release if it is due for one."""
        hold.give_up()
        if hold.due(self._clock()) is not Due.RELEASE:
            self._releases.ended(hold)
            return None
        release = self._releases.release(call, plan, hold, tried)
        return self._tasks.create(release, name=f"release {call.leg_id}")

    async def _abandon(self, call: Call, plan: InTurn, hold: Hold, prefill: "asyncio.Task[T | None]") -> None:
        hold.give_up()
        try:
            await asyncio.wait({prefill}, timeout=self._grace_s)
            if not prefill.done():
                prefill.cancel()
                await asyncio.wait({prefill})
        finally:
            # Also when kvproxy stops: nobody else would release the hold.
            if hold.due(self._clock()) is Due.RELEASE:
                await self._releases.release(call, plan, hold)

    def _count(self, hold: Hold) -> None:
        """The prefill leg is over: report the end of a hold that has ended with it."""
        if hold.ended:
            self._releases.ended(hold)
