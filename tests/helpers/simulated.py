"""A fleet in simulated time: the product's own lanes, placement, index and attempts decide, model engines
serve.

Only clock and engines are simulated. What happens is a heap of moments; at each, what is due runs to its end.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored, Event, PrefixIndex, Prompt
from proxy.admission import Admitted, Lanes
from proxy.admission.turns import Outcome, Refusal, Turn
from proxy.config import Admission, Config, Rules, parse_instance
from proxy.connectors import NixlConnector
from proxy.connectors.plans import InTurn
from proxy.errors import RequestError
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.fleet.instance import Status
from proxy.happenings import Happening, Refused
from proxy.phases import Phase, Role
from proxy.scheduling.placement import Placement
from proxy.scheduling.question import Question
from proxy.scheduling.types import AnyPolicy
from proxy.serving.legs.leg import AttemptFailedError, Reason
from proxy.serving.placed import Placed
from proxy.simulation import EngineShape
from proxy.simulation.engine.latency import Linear
from proxy.simulation.engine.request import Request, Sampling
from proxy.simulation.engine.request import Status as LegStatus
from proxy.simulation.engine.values import Output
from tests.helpers.simulated_engines import Engine, World
from tests.helpers.simulated_requests import Asked, Leg, Serving

PLAN = InTurn(NixlConnector(), leased=True)

REFUSED_S = 0.002
"""From sending a leg until its engine has answered that it is full, or that nobody listens."""
LOOK_S = 0.001
"""The least time between two looks at engines that may have room by lapse of time: timers fire no sooner."""


class Source:
    """Events of an engine that are all heard."""

    state = "exact"

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch


class Simulated:
    """kvproxy in simulated time, with engines of one kind."""

    def __init__(
        self,
        policy: AnyPolicy,
        *,
        prefill: int,
        decode: int,
        both: int = 0,
        room: int | None = None,
        shape: EngineShape | None = None,
        limits: Admission | None = None,
        seed: int = 0,
    ) -> None:
        """`room`: legs that each engine takes at once, None for any number."""
        self.world = World()
        self.fleet = Fleet()
        self.index = PrefixIndex()
        self.limits = limits or Admission()
        self._policy = policy
        self._seed = seed
        self.placement = self.new_placement()
        self.lanes = Lanes(
            fleet=self.fleet,
            placement=self.placement,
            rules=Rules(Config(model="tiny", admission=self.limits)),
            tell=self._heard_of,
            wake=self._woken,
        )
        self.refusals: Counter[str] = Counter()
        self.max_waiting = 0
        self.over_limit = 0
        """How often an instance had more than its limit, and more than one leg."""
        self.sent: Counter[str] = Counter()
        """Legs, by instance."""
        self.failures: Counter[tuple[Phase, Reason]] = Counter()
        self._turns: dict[Turn, Serving] = {}
        self._legs: dict[str, Leg] = {}
        self._looks_at: float | None = None
        shape = shape or EngineShape(
            profile=Linear(a=0.01, b=1e-4, s0=0.02, s1=1e-3, transfer_per_token=1e-5, handshake=0.2)
        )
        self.engines: dict[str, Engine] = {}
        self._peers: dict[str, Engine] = {}
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode), (Role.BOTH, both)):
            for number in range(count):
                self._start(f"{role}{number}:1", role, shape, room)

    def new_placement(self) -> Placement:
        """One that knows what the index says, and of no legs that are under way."""
        return Placement(
            self.fleet,
            self.index,
            self._policy,
            type(self._policy).__name__,
            clock=lambda: self.world.now,
            rng=random.Random(self._seed),
            limits=self.limits,
        )

    # -- the fleet ------------------------------------------------------------------------------------------

    def _start(self, address: str, role: Role, shape: EngineShape, room: int | None) -> None:
        self.engines[address] = Engine(
            self.world,
            address,
            shape,
            told=self._came,
            publish=lambda events: self._heard(address, events),
            peers=self._peers,
            room=room,
        )
        instance = Instance(parse_instance(address, role))
        instance.listed([ModelCard("tiny")], 0.0)
        instance.is_followed({0: Source()})
        instance.came_up()
        self.fleet.add(instance)

    def instance(self, address: str) -> Instance:
        """One of the fleet."""
        found = self.fleet.get(address)
        assert found is not None
        return found

    def restart(self, address: str, down_s: float) -> None:
        """An engine dies now, with all its legs, holds and blocks, and another process is there in a
        while.
        """
        instance = self.instance(address)
        self.engines[address].die()
        instance.went_down("the connection was refused")
        self.index.clear(address, 0)
        self.placement.forget(address)
        instance.is_followed({0: Source(instance.sources[0].epoch + 1)})
        for leg in [leg for leg in self._legs.values() if leg.address == address]:
            self._end_leg(leg)
            leg.failed(leg, Reason.BROKEN)
        self.world.after(down_s, instance.came_up)

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
            self.world.after(0.0, self._look)
        else:
            self._watch_moments()

    def _look(self) -> None:
        self._tell(self.lanes.changed(self.world.now))
        self._watch_moments()

    def _watch_moments(self) -> None:
        """Look again when an engine that said it is full may have more room by mere lapse of time."""
        left_s = self.lanes.look_again_in_s(self.world.now)
        if left_s is None:
            return
        due = self.world.now + max(LOOK_S, left_s)
        if self._looks_at is None or due < self._looks_at:
            self._looks_at = due
            self.world.after(due - self.world.now, lambda: self._moment(due))

    def _moment(self, due: float) -> None:
        if self._looks_at == due:
            self._looks_at = None
            self._look()

    def ask(self, asked: Asked) -> None:
        """A client's request comes now."""
        self._try(Serving(asked))

    def _try(self, serving: Serving) -> None:
        asked, attempts = serving.asked, serving.attempts
        question = Question(
            "tiny", Prompt(asked.tokens), len(asked.tokens), generated_tokens=asked.answer_tokens
        )
        turn = self.lanes.turn(
            serving.ticket, question, failed=attempts.avoid, prefill_on=attempts.prefill_on
        )
        self._turns[turn] = serving
        self._tell(self.lanes.offer(turn, self.world.now))
        self.max_waiting = max(self.max_waiting, len(self.lanes))
        if turn in self._turns:
            self.world.after(self.lanes.left_s(turn), lambda: self._expire(turn))
            self._watch_moments()

    def _expire(self, turn: Turn) -> None:
        if turn in self._turns:
            self._tell([self.lanes.expire(turn, self.world.now)])

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            serving = self._turns.pop(outcome.turn)
            if isinstance(outcome, Refusal):
                assert isinstance(outcome.error, RequestError), outcome.error
                self._refuse(serving, outcome.error.reason)
            else:
                self._serve(serving, outcome.admitted)
                self._check_limits()

    def _check_limits(self) -> None:
        for instance in self.fleet:
            prefills = instance.role is Role.PREFILL
            most = self.limits.max_prefill_tokens if prefills else self.limits.max_decode_tokens
            self.over_limit += 0 < most < instance.running_weight_tokens() and instance.running_legs() > 1

    # -- one request, as the director serves it -------------------------------------------------------------

    def _serve(self, serving: Serving, admitted: Admitted) -> None:
        asked = serving.asked
        asked.attempts += 1
        if asked.attempts == 1:
            asked.waited_s = self.world.now - asked.at
        lease_s = self.engines[self._address(admitted)].model.shape.lease_s
        placed = Placed(
            admitted, self.placement, PLAN, kind="tokens", lease_s=lease_s, avoid=serving.attempts.avoid
        )
        asked.predicted_tokens = placed.prefill.cached_tokens or 0
        asked.one_leg = placed.one_leg
        if placed.one_leg:
            self._generate(serving, placed, None)
        else:
            self._prefill(serving, placed)

    def _address(self, admitted: Admitted) -> str:
        chosen = admitted.decision.prefill.chosen
        assert chosen is not None
        return chosen.instance

    def _prefill(self, serving: Serving, placed: Placed) -> None:
        asked = serving.asked
        request = Request(
            f"{asked.number}-{asked.attempts}-prefill",
            list(asked.tokens),
            Sampling(1),
            arrived_s=self.world.now,
            hold=True,
        )

        def token(output: Output) -> None:
            assert output.params is not None
            asked.reused_tokens = request.local_hit
            placed.computed(came=True)
            self._generate(serving, placed, output)

        self._send(
            Phase.PREFILL,
            placed.prefill.instance,
            request,
            token,
            lambda leg, reason: self._failed(serving, placed, leg, reason),
        )

    def _generate(self, serving: Serving, placed: Placed, prefilled: Output | None) -> None:
        """The leg that generates the answer: of blocks that another engine holds, or of the whole request."""
        asked = serving.asked
        request = Request(
            f"{asked.number}-{asked.attempts}-decode",
            list(asked.tokens),
            Sampling(asked.answer_tokens, ignore_eos=True),
            arrived_s=self.world.now,
            pull=prefilled.params if prefilled is not None else None,
        )

        def token(_: Output) -> None:
            if prefilled is None:
                asked.reused_tokens = request.local_hit
                placed.computed(came=True)
            asked.first_token_at = asked.first_token_at or self.world.now
            if request.status.finished:
                placed.close()
                asked.answer = request.output
                self._over(serving)

        def failed(leg: Leg, reason: Reason) -> None:
            if prefilled is not None:
                self.engines[placed.prefill.instance].release(prefilled.request.id)
            self._failed(serving, placed, leg, reason)

        self._send(Phase.DECODE, placed.decode.instance, request, token, failed)

    def _failed(self, serving: Serving, placed: Placed, leg: Leg, reason: Reason) -> None:
        """An attempt has failed: try again if the director would."""
        now, attempts = self.world.now, serving.attempts
        two_legs = leg.phase is Phase.DECODE and not placed.one_leg
        placed.close()
        self.failures[leg.phase, reason] += 1
        serving.asked.failed.append(reason)
        serving.asked.first_token_at = None
        failure = AttemptFailedError(
            leg.phase,
            leg.address,
            prefill_on=placed.prefill.instance if two_legs else None,
            reason=reason,
            after_s=now - leg.sent_at,
        )
        attempts.failed_by(failure)
        if reason is Reason.FULL:
            serving.ticket.turn_away(leg.address, now, failure.after_s)
        if not attempts.free:
            dead = [
                each.instance
                for each in (placed.prefill, placed.decode)
                if self.instance(each.instance).status is Status.DOWN
            ]
            if attempts.exhausted or not (attempts.leave(dead[0] if dead else None) or attempts.may_pay):
                self._refuse(serving, "failed")
                return
            attempts.paid += not dead
        self.world.after(0.0, lambda: self._try(serving))

    def _refuse(self, serving: Serving, reason: str | None) -> None:
        serving.asked.refused = reason
        self._over(serving)

    def _over(self, serving: Serving) -> None:
        asked = serving.asked
        asked.ends += 1
        if asked.refused is None:
            asked.ended_at = self.world.now
        serving.whole.close()

    # -- a leg ----------------------------------------------------------------------------------------------

    def _send(
        self,
        phase: Phase,
        address: str,
        request: Request,
        token: Callable[[Output], None],
        failed: Callable[[Leg, Reason], None],
    ) -> None:
        instance, now = self.instance(address), self.world.now
        leg = Leg(phase, address, request, now, token=token, failed=failed)
        self._legs[request.id] = leg
        self.sent[address] += 1
        if instance.fullness.sent(now):
            instance.announce()
        if instance.status is not Status.UP:
            self.world.after(REFUSED_S, lambda: self._not_taken(leg, Reason.CONNECT))
        elif not self.engines[address].add(request):
            self.world.after(REFUSED_S, lambda: self._not_taken(leg, Reason.FULL))

    def _not_taken(self, leg: Leg, reason: Reason) -> None:
        if self._legs.get(leg.request.id) is not leg:
            return  # its engine has died meanwhile
        self._end_leg(leg)
        if reason is Reason.FULL:
            fullness = self.instance(leg.address).fullness
            fullness.said(self.world.now, fullness.legs, leg.sent_at)
        leg.failed(leg, reason)

    def _came(self, output: Output) -> None:
        leg = self._legs[output.request.id]
        instance = self.instance(leg.address)
        failed = output.request.status is LegStatus.FAILED
        if not failed and instance.fullness.took(instance.fullness.legs, leg.sent_at):
            instance.announce()
        if output.request.status.finished:
            self._end_leg(leg)
        if failed:
            leg.failed(leg, Reason.STATUS)
        else:
            leg.token(output)

    def _end_leg(self, leg: Leg) -> None:
        del self._legs[leg.request.id]
        self.instance(leg.address).fullness.ended()
