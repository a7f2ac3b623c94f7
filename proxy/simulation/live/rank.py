"""Invariant: between two steps of a model, all that arrived is in it, and all that came out of it is on its
way.

The wall-clock driver of one rank: it sleeps through each step, and passes tokens to the requests that wait,
events to the publisher, commands to the side channel. It decides nothing.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from proxy.simulation.api.generation import Generation
from proxy.simulation.engine.engine import EngineModel
from proxy.simulation.engine.values import Command, EngineDeadError, Handshake, Output, Pull
from proxy.simulation.live.metrics import EngineMetrics
from proxy.simulation.live.pace import Pace
from proxy.simulation.live.publisher import Publisher
from proxy.simulation.live.side_channel import Ask, Reply, SideChannelClient, SideChannelServer, TransferError
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)


class Rank:
    """One data-parallel rank of a live stand-in. `died` is called if a request kills the engine."""

    def __init__(
        self,
        number: int,
        model: EngineModel,
        publisher: Publisher | None,
        metrics: EngineMetrics,
        client: SideChannelClient,
        died: Callable[[], None],
    ) -> None:
        self.number = number
        self.model = model
        self.publisher = publisher
        self._metrics = metrics
        self._client = client
        self._died = died
        self._side = SideChannelServer(self._answer)
        self._tasks = TaskOwner(f"rank {number}")
        self._wake = asyncio.Event()
        self._rested = asyncio.Event()
        self._generations: dict[str, Generation] = {}
        self._pace = Pace()

    @property
    def load(self) -> int:
        """The number of unfinished requests, by which ranks are compared."""
        return self.model.unfinished

    async def start(self, host: str, side_port: int) -> int:
        """Open the side channel and begin to step. Returns the side channel's port."""
        port = await self._side.start(host, side_port)
        self.model.address = (host, port)
        self._tasks.create(self._run(), name="steps")
        return port

    async def stop(self) -> None:
        """End at once, as a killed process would."""
        await self._side.close()
        await self._tasks.close()
        if self.publisher is not None:
            await self.publisher.close()
        self.fail()

    def fail(self) -> None:
        """Every waiting request learns that the engine is gone."""
        for generation in set(self._generations.values()):
            generation.fail()

    def submit(self, generation: Generation) -> None:
        """Give the engine a request's choices."""
        for choice in generation.choices:
            self._generations[choice.request.id] = generation
            self.model.add(choice.request)
        self._wake.set()

    def forget(self, generation: Generation) -> None:
        """A request is answered, or its client has gone."""
        generation.abandon()
        for choice in generation.choices:
            self._generations.pop(choice.request.id, None)
        self._wake.set()

    async def sleep(self, level: int, mode: str) -> None:
        """Fall asleep as soon as running requests have ended and no other engine may fetch blocks."""
        for output in self.model.pause(mode):
            self._deliver(output)
        self._wake.set()
        while not self.model.drained:
            self._rested.clear()
            await self._rested.wait()
        self.model.fall_asleep(level)

    def wake_up(self, memories: Collection[str]) -> bool:
        """Wake these memories. Returns whether all are awake now."""
        awake = self.model.wake_up(memories)
        self._wake.set()
        return awake

    def reject(self, params: Mapping[str, Any]) -> None:
        """A decode leg was refused: let its hold go."""
        self.model.reject(params)
        self._wake.set()

    async def _run(self) -> None:
        try:
            while True:
                await self._step()
        except EngineDeadError as error:
            log.warning("rank %d dies: %s", self.number, error)
            self._died()
        except Exception:
            self._died()
            raise

    async def _step(self) -> None:
        self._wake.clear()
        now_s = time.monotonic()
        self.model.expire(now_s)
        self._rested.set()
        step = self.model.begin_step(now_s)
        for command in self.model.take_commands(now_s):
            self._tasks.create(self._carry_out(command), name=type(command).__name__)
        if step is None:
            self._pace.rests()
            await self._idle(now_s)
            return
        end_s = self._pace.ends_s(now_s, step.duration_s)
        await asyncio.sleep(max(end_s - time.monotonic(), 0))
        outputs = self.model.end_step(step, time.monotonic())
        events = self.model.take_events()
        if events and self.publisher is not None:
            self.publisher.publish(events)
        for output in outputs:
            self._metrics.token(self.number, output)
            self._deliver(output)

    def _deliver(self, output: Output) -> None:
        if (generation := self._generations.get(output.request.id)) is not None:
            generation.feed(output)

    async def _idle(self, now_s: float) -> None:
        deadline_s = self.model.next_deadline_s()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if deadline_s is None else max(deadline_s - now_s, 0)):
                await self._wake.wait()

    async def _carry_out(self, command: Command) -> None:
        if isinstance(command, Handshake):
            await self._shake_hands(command)
            return
        if not isinstance(command, Pull):
            with contextlib.suppress(TransferError):
                await self._client.tell(command)
            return
        begun_s = time.monotonic()
        await asyncio.sleep(command.transfer_s)
        try:
            contents = await self._client.pull(command)
        except TransferError:
            for output in self.model.pull_failed(command.request_id):
                self._deliver(output)
        else:
            before = self.model.stats.transferred_bytes
            self.model.pulled(command.request_id, contents)
            moved = self.model.stats.transferred_bytes - before
            self._metrics.transfer(self.number, time.monotonic() - begun_s, moved)
        self._wake.set()

    async def _shake_hands(self, command: Handshake) -> None:
        peers, engine_id = self.model.peers, command.remote.engine_id
        await asyncio.sleep(command.takes_s)
        try:
            await self._client.tell(command)
        except TransferError:
            peers.missed(engine_id)
        else:
            peers.met(engine_id)  # and nothing is woken: kept notices go out with the next step

    def _answer(self, ask: Ask) -> Reply:
        model = self.model
        if ask.engine_id != model.engine_id:
            return Reply(known=False)
        contents = []
        match ask.verb:
            case "pull":
                contents = [c.to_wire() for c in model.serve_pull(ask.request_id, ask.blocks)]
            case "release":
                model.serve_release(ask.request_id)
            case "meet":
                return Reply(known=True)
            case _:
                model.holds.heartbeat([ask.request_id], time.monotonic())
        self._wake.set()
        return Reply(known=True, contents=contents)
