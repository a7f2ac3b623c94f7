"""Model engines in simulated time: they step while they have something to do, refuse what they have no room
for, and may die and come back with nothing in their caches.
"""

import heapq
import itertools
from collections.abc import Callable

from kvevents import Event
from proxy.simulation import EngineModel, EngineShape
from proxy.simulation.engine.request import Request
from proxy.simulation.engine.text import Voice
from proxy.simulation.engine.values import Command, Handshake, Heartbeat, Output, Pull, Release, Step

EVENT_DELAY_S = 0.005
"""From the end of a step until the index knows what it stored."""


class World:
    """What happens when. Simulated seconds since the beginning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done later; what is due at the same time is done in the order it was asked for."""
        heapq.heappush(self._moments, (self.now + seconds, next(self._numbers), do))

    def run(self) -> None:
        """Let time pass until nothing is left to happen."""
        while self._moments:
            self.now, _, do = heapq.heappop(self._moments)
            do()


class Engine:
    """One address and the process behind it."""

    def __init__(
        self,
        world: World,
        address: str,
        shape: EngineShape,
        *,
        told: Callable[[Output], None],
        publish: Callable[[list[Event]], None],
        peers: "dict[str, Engine]",
        room: int | None = None,
    ) -> None:
        """`told` gets each token, `publish` what a step stored; `peers`: all engines, by the id of their
        process; `room`: legs it takes at once, None for any number.
        """
        self._world = world
        self._address = address
        self._shape = shape
        self._told = told
        self._publish = publish
        self._peers = peers
        self.room = room
        self._processes = itertools.count()
        self._begin()

    def _begin(self) -> None:
        name = f"{self._address}#{next(self._processes)}"
        self.model = EngineModel(self._shape, Voice(range(300, 4000), 2), name)
        self._stepping = False
        self._expires_at: float | None = None
        self._peers[name] = self

    def die(self) -> None:
        """Its process ends with all it had; the next one begins with nothing."""
        del self._peers[self.model.engine_id]
        self._begin()

    def add(self, request: Request) -> bool:
        """A leg has come; False if there is no room for it."""
        if self.room is not None and self.model.unfinished >= self.room:
            return False
        self.model.add(request)
        self._step()
        return True

    def release(self, request_id: str) -> None:
        """Nobody will fetch the blocks that a leg left behind."""
        if request_id in self.model.holds:
            self.model.serve_release(request_id)

    def _step(self) -> None:
        if self._stepping:
            return
        step = self.model.begin_step(self._world.now)
        self._command()
        if step is not None:
            self._stepping = True
            self._later(step.duration_s, lambda: self._stepped(step))

    def _stepped(self, step: Step) -> None:
        self._stepping = False
        outputs = self.model.end_step(step, self._world.now)
        if events := self.model.take_events():
            self._later(EVENT_DELAY_S, lambda: self._publish(events))
        for output in outputs:
            self._told(output)
        self._step()
        self._watch_leases()

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something unless the process has ended by then."""
        process = self.model
        self._world.after(seconds, lambda: do() if self.model is process else None)

    def _watch_leases(self) -> None:
        due = self.model.holds.next_expiry_s()
        if due is not None and self._expires_at is None:
            self._expires_at = due
            self._later(max(0.0, due - self._world.now), self._expire)

    def _expire(self) -> None:
        self._expires_at = None
        self.model.expire(self._world.now)
        self._watch_leases()

    def _command(self) -> None:
        for command in self.model.take_commands(self._world.now):
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Pull():
                self._later(command.transfer_s, lambda: self._pull(command))
            case Handshake():
                self._later(command.takes_s, lambda: self._shake_hands(command))
            case Release() | Heartbeat():
                peer = self._peers.get(command.remote.engine_id)
                if peer is None:
                    return  # nobody is there to be told
                if isinstance(command, Release):
                    peer.model.serve_release(command.remote.request_id)
                else:
                    peer.model.holds.heartbeat([command.remote.request_id], self._world.now)

    def _pull(self, pull: Pull) -> None:
        peer = self._peers.get(pull.remote.engine_id)
        if peer is None:
            for output in self.model.pull_failed(pull.request_id):
                self._told(output)
        else:
            contents = peer.model.serve_pull(pull.remote.request_id, pull.blocks)
            self.model.pulled(pull.request_id, contents)
        self._step()

    def _shake_hands(self, handshake: Handshake) -> None:
        engine_id = handshake.remote.engine_id
        if engine_id in self._peers:
            self.model.peers.met(engine_id)
        else:
            self.model.peers.missed(engine_id)
        self._step()
