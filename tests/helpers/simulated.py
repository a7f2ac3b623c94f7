"""A fleet in simulated time: the product's own lanes, placement and index decide, model engines serve.

Only clock and engines are simulated. What happens is a heap of moments; at each, what is due runs to its end.
"""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored, Event, PrefixIndex, Prompt
from proxy.admission import Admitted, Lanes, Ticket
from proxy.admission.turns import Outcome, Refusal, Turn
from proxy.config import Admission, Config, Rules, parse_instance
from proxy.errors import RequestError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.happenings import Happening, Refused
from proxy.phases import Role
from proxy.scheduling.placement import Placement
from proxy.scheduling.question import Question
from proxy.scheduling.types import AnyPolicy, Candidate
from proxy.serving.placed import Placed
from proxy.simulation import EngineModel, EngineShape
from proxy.simulation.engine.latency import Linear
from proxy.simulation.engine.request import Request, Sampling
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
    """A model engine that steps while it has something to do."""

    def __init__(self, world: World, name: str, shape: EngineShape, told: Callable[[Output], None]) -> None:
        """`told` gets each token."""
        self.model = EngineModel(shape, Voice(range(300, 4000), 2), name)
        self._world = world
        self._told = told
        self._stepping = False
        self.publish: Callable[[list[Event]], None] = lambda _: None
        self.peers: dict[str, Engine] = {}

    def add(self, request: Request) -> None:
        """A leg has come."""
        self.model.add(request)
        self._step()

    def _step(self) -> None:
        if self._stepping:
            return
        step = self.model.begin_step(self._world.now)
        self._command()
        if step is not None:
            self._stepping = True
            self._world.after(step.duration_s, lambda: self._stepped(step))

    def _stepped(self, step: Step) -> None:
        self._stepping = False
        outputs = self.model.end_step(step, self._world.now)
        if events := self.model.take_events():
            self._world.after(EVENT_DELAY_S, lambda: self.publish(events))
        for output in outputs:
            self._told(output)
        self._step()

    def _command(self) -> None:
        for command in self.model.take_commands(self._world.now):
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        peer = self.peers[command.remote.engine_id]
        match command:
            case Pull():
                self._world.after(command.transfer_s, lambda: self._pulled(peer, command))
            case Handshake():
                self._world.after(command.takes_s, lambda: self._met(command))
            case Release():
                peer.model.serve_release(command.remote.request_id)
            case Heartbeat():
                peer.model.holds.heartbeat([command.remote.request_id], self._world.now)

    def _pulled(self, peer: "Engine", pull: Pull) -> None:
        self.model.pulled(pull.request_id, peer.model.serve_pull(pull.remote.request_id, pull.blocks))
        self._step()

    def _met(self, handshake: Handshake) -> None:
        self.model.peers.met(handshake.remote.engine_id)
        self._step()


class Exact:
    """Events of an engine that are all heard."""

    state = "exact"
    epoch = 0


class Asked:
    """A request of a client, and what became of it."""

    def __init__(self, number: int, client: str, tokens: list[int], answer_tokens: int, at: float) -> None:
        self.number = number
        self.client = client
        self.tokens = tokens
        self.answer_tokens = answer_tokens
        self.at = at
        self.waited_s = 0.0
        self.predicted_tokens = 0
        self.reused_tokens = 0
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.refused: str | None = None
        self.answer: Sequence[int] = ()


class Simulated:
    """kvproxy in simulated time, with prefill and decode engines of one kind."""

    def __init__(
        self,
        policy: AnyPolicy,
        *,
        prefill: int,
        decode: int,
        shape: EngineShape | None = None,
        limits: Admission | None = None,
        seed: int = 0,
    ) -> None:
        self.world = World()
        self.fleet = Fleet()
        self.index = PrefixIndex()
        self.limits = limits or Admission()
        self.placement = Placement(
            self.fleet,
            self.index,
            policy,
            type(policy).__name__,
            clock=lambda: self.world.now,
            rng=random.Random(seed),
            limits=self.limits,
        )
        self.lanes = Lanes(
            fleet=self.fleet,
            placement=self.placement,
            rules=Rules(Config(model="tiny", admission=self.limits)),
            tell=self._heard_of,
            wake=self._woken,
        )
        self.refusals: Counter[str] = Counter()
        self.most_waiting = 0
        self.over_limit = 0
        """How often an instance had more than its limit, and more than one leg."""
        self._turns: dict[Turn, Asked] = {}
        self._legs: dict[str, Callable[[Output], None]] = {}
        shape = shape or EngineShape(
            profile=Linear(a=0.01, b=1e-4, s0=0.02, s1=1e-3, transfer_per_token=1e-5, handshake=0.2)
        )
        self.engines: dict[str, Engine] = {}
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
            for number in range(count):
                self._start(f"{role}{number}:1", role, shape)
        for engine in self.engines.values():
            engine.peers = self.engines

    # -- the fleet ------------------------------------------------------------------------------------------

    def _start(self, address: str, role: Role, shape: EngineShape) -> None:
        engine = Engine(self.world, address, shape, lambda output: self._legs[output.request.id](output))
        engine.publish = lambda events: self._heard(address, events)
        self.engines[address] = engine
        instance = Instance(parse_instance(address, role))
        instance.listed([ModelCard("tiny")], 0.0)
        instance.is_followed({0: Exact()})
        instance.came_up()
        self.fleet.add(instance)

    def instance(self, address: str) -> Instance:
        """One of the fleet."""
        found = self.fleet.get(address)
        assert found is not None
        return found

    def _heard(self, address: str, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case BlockStored():
                    self.index.store(address, 0, event)
                case BlockRemoved():
                    self.index.remove(address, 0, event)
                case AllBlocksCleared():
                    self.index.clear(address, 0)

    # -- the queue, as a loop would serve it ----------------------------------------------------------------

    def _heard_of(self, happening: Happening) -> None:
        if isinstance(happening, Refused):
            self.refusals[happening.reason] += 1

    def _woken(self) -> None:
        if self.lanes.due:
            self.world.after(0.0, lambda: self._tell(self.lanes.changed(self.world.now)))

    def ask(self, asked: Asked) -> None:
        """A client's request comes now."""
        prompt = Prompt(asked.tokens)
        question = Question("tiny", prompt, len(asked.tokens), generated_tokens=asked.answer_tokens)
        turn = self.lanes.turn(Ticket(asked.client), question)
        self._turns[turn] = asked
        self._tell(self.lanes.offer(turn, self.world.now))
        self.most_waiting = max(self.most_waiting, len(self.lanes))
        if turn in self._turns:
            self.world.after(self.lanes.left_s(turn), lambda: self._expire(turn))

    def _expire(self, turn: Turn) -> None:
        if turn in self._turns:
            self._tell([self.lanes.expire(turn, self.world.now)])

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            asked = self._turns.pop(outcome.turn)
            if isinstance(outcome, Refusal):
                assert isinstance(outcome.error, RequestError), outcome.error
                asked.refused = outcome.error.reason
                continue
            asked.waited_s = self.world.now - asked.at
            self._prefill(asked, outcome.turn.ticket, outcome.admitted)
            self._check_limits()

    def _check_limits(self) -> None:
        for instance in self.fleet:
            prefills = instance.role is Role.PREFILL
            most = self.limits.max_prefill_tokens if prefills else self.limits.max_decode_tokens
            self.over_limit += 0 < most < instance.running_weight_tokens() and instance.running_legs() > 1

    # -- one request, as the director serves it -------------------------------------------------------------

    def _prefill(self, asked: Asked, ticket: Ticket, admitted: Admitted) -> None:
        placed = Placed(admitted, self.placement, kind="tokens", lease_s=math.inf)
        prefill, decode = placed.prefill, placed.decode
        whole = ExitStack()
        whole.enter_context(ticket.kept())
        whole.enter_context(placed)
        asked.predicted_tokens = prefill.cached_tokens or 0
        leg = Request(
            f"{asked.number}-prefill", list(asked.tokens), Sampling(1), arrived_s=self.world.now, hold=True
        )

        def token(output: Output) -> None:
            assert output.params is not None
            asked.reused_tokens = leg.local_hit
            placed.computed(came=True)
            self._decode(asked, decode, output, whole)

        self._legs[leg.id] = token
        self.engines[prefill.instance].add(leg)

    def _decode(self, asked: Asked, decode: Candidate, prefilled: Output, whole: ExitStack) -> None:
        leg = Request(
            f"{asked.number}-decode",
            list(asked.tokens),
            Sampling(asked.answer_tokens, ignore_eos=True),
            arrived_s=self.world.now,
            pull=prefilled.params,
        )

        def token(_: Output) -> None:
            asked.first_token_at = asked.first_token_at or self.world.now
            if leg.status.finished:
                asked.ended_at, asked.answer = self.world.now, leg.output
                whole.close()

        self._legs[leg.id] = token
        self.engines[decode.instance].add(leg)
