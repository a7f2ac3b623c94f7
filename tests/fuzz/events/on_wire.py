"""Hostile publishers on real sockets against a real subscriber, one after another at its address.

After each a truthful one comes, and the subscriber, which was never restarted, must follow it exactly.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from kvevents import Message, PrefixIndex, Slot, State
from kvevents.subscriber import SourceAddress, Subscriber, open_context
from proxy.tasks import TaskOwner
from scripts.workshop.live.ports import free_ports
from tests.fuzz.events.good_engine import GoodEngine
from tests.fuzz.events.lying_publisher import Liar, Truthful
from tests.fuzz.events.payloads import Payloads
from tests.fuzz.events.tally import Tally
from tests.fuzz.events.watched_index import WatchedIndex, contradiction

INPUTS = 500
"""Live messages of one story."""
CALM_S = 60.0
"""After which a subscriber that does not follow a truthful publisher is stuck."""

_INSTANCE = "10.0.0.1:8000"
_SLOT = Slot(_INSTANCE, 0, "GPU")
_QUIET_S = 0.3
_PROBE_S = 0.5
_LIMIT_S = 2.0
_GARBAGE_EVERY = 10  # stories before which a server that speaks no ZeroMQ is met


class TimedLoop(asyncio.SelectorEventLoop):
    """Measures the CPU time of each turn."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally
        self.story = ""

    def _run_once(self) -> None:
        before = time.thread_time()
        super()._run_once()  # type: ignore[misc]  # asyncio's own, on which its debug mode is built as well
        self.tally.held(time.thread_time() - before, self.story)


class _Counting(Subscriber):
    """Counts live messages, readable or not."""

    heard = 0

    def _read(self, frames: list[bytes]) -> Message | None:
        self.heard += 1
        return super()._read(frames)


class OnWire:
    """Tells stories of one seed to one subscriber."""

    def __init__(self, seed: int, tally: Tally) -> None:
        self._seed = seed
        self._tally = tally
        self._payloads = Payloads()
        self._index = PrefixIndex(max_blocks=100_000)
        self._watched = WatchedIndex(self._index)
        ports = free_ports(2)
        self._endpoints = f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}"
        self._port = ports[0]

    def run(self, inputs: int, first: int, enough: Callable[[], bool], after: Callable[[], None]) -> None:
        """Tell stories from number `first` on until there were so many live messages; `after` each."""
        begun = time.monotonic()
        with asyncio.Runner(loop_factory=lambda: TimedLoop(self._tally)) as runner:
            runner.run(self._run(inputs, first, enough, after))
        self._tally.seconds += time.monotonic() - begun

    async def _run(
        self, inputs: int, first: int, enough: Callable[[], bool], after: Callable[[], None]
    ) -> None:
        number = first
        async with self._following() as (subscriber, task):
            while self._tally.inputs < inputs and not enough() and not task.done():
                await self._tell(number, subscriber, task)
                number += 1
                self._tally.sample()
                after()
            if task.done():
                self._tally.find(f"the subscriber ended: {task.exception()!r}")

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[tuple[_Counting, asyncio.Task[None]]]:
        tasks = TaskOwner("fuzz")
        context = open_context()
        address = SourceAddress(0, *self._endpoints)
        subscriber = _Counting(
            _INSTANCE,
            address,
            self._watched,
            self._tally,
            context=context,
            probe_s=_PROBE_S,
            replay_quiet_s=_QUIET_S,
            replay_limit_s=_LIMIT_S,
        )
        task = tasks.create(subscriber.run(), name="subscriber")
        try:
            yield subscriber, task
        finally:
            task.cancel()
            await asyncio.wait({task})
            context.term()

    async def _tell(self, number: int, subscriber: _Counting, task: asyncio.Task[None]) -> None:
        rng = random.Random(f"{self._seed} wire {number}")  # repeatable, not secret
        loop = asyncio.get_running_loop()
        if isinstance(loop, TimedLoop):
            loop.story = f"wire story {number}"
        self._tally.stories += 1
        if number % _GARBAGE_EVERY == 0:
            await self._garbage(rng)
        liar = Liar(self._endpoints, rng, self._payloads, INPUTS)
        before = subscriber.heard
        liar.start()
        await self._until(lambda: subscriber.connected or task.done())
        liar.go.set()
        await self._until(lambda: liar.done.is_set() or task.done() or not liar.is_alive())
        heard = -1
        while (
            heard < subscriber.heard < before + liar.sent
        ):  # some are lost before a subscription, or after 17 MB
            heard = subscriber.heard
            await asyncio.sleep(_QUIET_S)
        await asyncio.to_thread(liar.stop)
        heard = subscriber.heard - before
        self._tally.inputs += heard
        self._tally.ends["live", "heard"] += heard
        self._tally.ends["live", "lost by the network"] += liar.sent - heard
        self._tally.ends["replayed", "sent"] += liar.replayed
        engine = GoodEngine(rng)
        engine.work(12)
        truthful = Truthful(self._endpoints, engine.batches[:8], engine.batches[8:])
        truthful.start()

        def exact() -> bool:
            return subscriber.state is State.EXACT or task.done()

        def followed() -> bool:
            return task.done() or (exact() and engine.difference(self._index, _SLOT) is None)

        calm = await self._until(lambda: subscriber.connected) and await self._until(exact)
        truthful.go.set()
        if not (calm and await self._until(followed)):
            words = engine.difference(self._index, _SLOT) or "its index is right"
            self._tally.find(f"wire story {number}: stuck in state {subscriber.state}: {words}")
        if wrong := contradiction(self._index, _INSTANCE, 0):
            self._tally.find(f"wire story {number}: {wrong}")
        await asyncio.to_thread(truthful.stop)
        await self._until(lambda: not subscriber.connected or task.done())

    async def _garbage(self, rng: random.Random) -> None:
        """Be a server that speaks no ZeroMQ, or begins as one and goes on as none."""
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)  # ZMTP 3.0
        met = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal met
            met += 1
            writer.write(
                rng.choice((b"", greeting, greeting[:10])) + rng.randbytes(rng.choice((0, 10, 10_000)))
            )
            writer.close()
            del reader

        server = await asyncio.start_server(serve, "127.0.0.1", self._port)
        await self._until(lambda: met > 2)
        server.close()
        await server.wait_closed()
        self._tally.ends["garbage", "connections"] += met

    @staticmethod
    async def _until(condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + CALM_S
        while not condition():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True
