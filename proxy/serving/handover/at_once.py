"""Of two legs that run at once neither outlives its use: one that fails ends the other, and a client that
leaves ends both.

The decode leg's answer is the request's as soon as it begins; a prefill leg that still runs then is about to
end, and gets some seconds for it. `serving/custody_at_once.py` says what becomes of the blocks.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from proxy.phases import Phase
from proxy.serving.custody_at_once import Crossing, DecodeLeg, PrefillLeg
from proxy.serving.handover.releases import Releases
from proxy.tasks import TaskOwner

T = TypeVar("T")


class AtOnceHandover:
    """Carries out plans of legs that run at once."""

    def __init__(self, releases: Releases, tasks: TaskOwner, *, grace_s: float) -> None:
        """`grace_s`: how long a prefill leg may run once its request is over."""
        self._releases = releases
        self._tasks = tasks
        self._grace_s = grace_s

    async def run(
        self,
        crossing: Crossing,
        prefill: "asyncio.Task[T | None]",
        decode: "asyncio.Task[T]",
        drop: Callable[[T], None],
    ) -> T:
        """What the request ends with: the prefill leg's result if that leg failed, else the decode leg's.

        Both tasks have just begun. `prefill` ends with None on success and tells `crossing` of its end;
        `decode` tells `crossing` once it has produced something. `drop` gets a decode result that nobody
        waits for any more. May be cancelled at any moment.
        """
        legs = {Phase.PREFILL: prefill, Phase.DECODE: decode}
        tell = self._follow(crossing, prefill, decode)
        try:
            while True:
                tell()
                if decode.done() and (crossing.produced or prefill.done()):
                    break
                _cancel(crossing, legs)
                running = [leg for leg in legs.values() if not leg.done()]
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            crossing.give_up()
            _cancel(crossing, legs)
            decode.add_done_callback(lambda leg: _dropped(leg, drop))
            self.leave(prefill)
            raise
        if not crossing.produced and not prefill.cancelled() and (end := prefill.result()) is not None:
            return end
        return decode.result()

    def leave(self, prefill: "asyncio.Task[T]") -> None:
        """The request is over: its prefill leg gets a moment to end, if it still runs."""
        if not prefill.done():
            self._tasks.create(self._ends(prefill), name=f"end of {prefill.get_name()}")

    async def _ends(self, prefill: "asyncio.Task[T]") -> None:
        await asyncio.wait({prefill}, timeout=self._grace_s)
        prefill.cancel()

    def _follow(
        self, crossing: Crossing, prefill: "asyncio.Task[T | None]", decode: "asyncio.Task[T]"
    ) -> Callable[[], None]:
        """Tell the crossing how its legs end, and `Releases` once it is over, also when nobody waits for it.

        Returns the function that does so: it may be called at any time, and sees what has ended by then.
        """
        counted = False

        def tell() -> None:
            nonlocal counted
            if prefill.done() and crossing.prefill is PrefillLeg.RUNS:  # it was cancelled before it began
                crossing.lost(finished=False)
            if decode.done() and crossing.decode is DecodeLeg.RUNS:
                crossing.missed()
            if crossing.over and not counted:
                counted = True
                self._releases.ended(crossing)

        prefill.add_done_callback(lambda _leg: tell())
        decode.add_done_callback(lambda _leg: tell())
        return tell


def _cancel(crossing: Crossing, legs: "dict[Phase, asyncio.Task[T] | asyncio.Task[T | None]]") -> None:
    for phase in crossing.to_cancel:
        legs[phase].cancel()


def _dropped(leg: "asyncio.Task[T]", drop: Callable[[T], None]) -> None:
    if not leg.cancelled() and leg.exception() is None:
        drop(leg.result())
