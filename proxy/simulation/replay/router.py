"""Where a request goes is decided by the objects that serve, from what they would know: never from an
engine's own state.

The lanes let requests in, the placement decides by policy, index and claims, and the claims end when they end
in the service: the prefill leg's with its answer, the other's with the last token.
"""

import random
import time as clocks
from collections import Counter
from collections.abc import Iterable, Mapping

from kvevents import BlockRemoved, BlockStored, Event, PrefixIndex, Prompt
from proxy.admission import Lanes
from proxy.admission.turns import Outcome, Refusal
from proxy.admission.turns import Turn as Wait
from proxy.config import Admission, Config, Rules, parse_instance
from proxy.errors import ConfigError, RequestError
from proxy.fleet import Fleet, Instance, ModelCard, Status
from proxy.fleet.gauges import Gauges as Told
from proxy.happenings import Happening
from proxy.latency.fits import PoolName
from proxy.latency.learner import LatencyLearner
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN, Profile
from proxy.phases import Role
from proxy.scheduling.placement import Placement
from proxy.scheduling.question import Question
from proxy.scheduling.types import AnyPolicy, reads_latency
from proxy.simulation.replay.attempt import Attempt, Call, World
from proxy.simulation.replay.baselines import Follows
from proxy.simulation.replay.contents import GivenKeys, Names
from proxy.simulation.replay.instance import Gauges, ReplayedInstance
from proxy.simulation.replay.job import Job
from proxy.simulation.replay.records import End
from proxy.simulation.replay.timeline import Timeline, Turn

ATTEMPTS = 3
"""The most engines that one request may fail on, as `--attempts` has it."""
MODEL = "model"
"""The model of requests that name none."""
LOOK_S = 0.001
"""The least time between two looks at a queue whose instances may have room by lapse of time."""


class Source:
    """The events of an engine, all of which are heard."""

    state = "exact"
    epoch = 0


class Router:
    """One kvproxy in simulated time."""

    def __init__(
        self,
        time: Timeline,
        policy: AnyPolicy,
        policy_name: str,
        names: Names,
        *,
        models: Iterable[str],
        limits: Admission | None = None,
        seed: int = 0,
        event_delay_s: float = 0.0,
        unknown_share: float = 0.0,
        bypass_tokens: int | None = None,
        profile: Profile = PROFILES[UNKNOWN],
    ) -> None:
        """`event_delay_s`: from the end of an engine's step until its events are in the index;
        `unknown_share`: the share of prompts whose tokens are not known; `bypass_tokens`: as
        `Config.bypass_tokens`; `profile`: what is believed of
        engines before anything was learned.
        """
        self._time = time
        self._keys = GivenKeys(names)
        self._delay_s = event_delay_s
        self._unknown = unknown_share
        self._dice = random.Random(seed + 1)  # noqa: S311  # no secret
        self._cards = [ModelCard(model) for model in models]
        self._engines: dict[str, ReplayedInstance] = {}
        self.latency = LatencyModel(profile)
        self._learner = LatencyLearner(self.latency, self._pool_of) if reads_latency(policy) else None
        self._world = World(
            time,
            engines=self._engines,
            legs={},
            sent=Counter(),
            tell=self._learner.hear if self._learner is not None else None,
            follows=policy if isinstance(policy, Follows) else None,
            served=lambda call: self.end(call, End.SERVED),
            failed=self._failed,
        )
        self._waiting: dict[Wait, tuple[Call, float]] = {}
        self._looks_at: float | None = None
        limits = limits or Admission()
        self._answer_tokens = limits.expected_answer_tokens
        self.fleet = Fleet()
        self.index = PrefixIndex(self._keys)
        self.placement = Placement(
            self.fleet,
            self.index,
            policy,
            policy_name,
            clock=lambda: time.now_s,
            rng=random.Random(seed),  # noqa: S311  # no secret
            limits=limits,
            latency=self.latency,
            bypass_tokens=lambda: bypass_tokens,
        )
        self.lanes = Lanes(
            fleet=self.fleet,
            placement=self.placement,
            rules=Rules(Config(model=MODEL, admission=limits)),
            tell=_nobody_hears,
            wake=self._woken,
        )

    @property
    def reads_prompt(self) -> bool:
        """Whether prompts are looked at, so that events must be heard."""
        return self.placement.reads_prompt

    # -- the fleet ------------------------------------------------------------------------------------------

    def join(self, engine: ReplayedInstance, role: Role) -> None:
        """An engine joins the fleet."""
        self._engines[engine.address] = engine
        instance = Instance(parse_instance(engine.address, role))
        instance.listed(self._cards, 0.0)
        instance.is_followed({0: Source()})
        instance.came_up()
        self.fleet.add(instance)
        if self._learner is not None:
            self._learner.joined(engine.address)

    def _pool_of(self, address: str) -> PoolName | None:
        instance = self.fleet.get(address)
        return None if instance is None else PoolName(instance.role, MODEL)

    def heard(self, address: str, events: list[Event]) -> None:
        """An engine has published events."""
        if self._delay_s:
            self._time.after(self._delay_s, Turn.HEAR, self._apply, address, events)
        else:
            self._apply(address, events)

    def _apply(self, address: str, events: list[Event]) -> None:
        index = self.index
        for event in events:
            if isinstance(event, BlockStored):
                index.store(address, 0, event)
            elif isinstance(event, BlockRemoved):
                index.remove(address, 0, event)

    def went_down(self, address: str, lost: Iterable[Job]) -> None:
        """An engine has died with these jobs, some of which may be other routers'."""
        instance = self.fleet.get(address)
        if instance is None:
            raise KeyError(address)
        instance.went_down("the connection was refused")
        self.index.clear(address, 0)
        self.placement.forget(address)
        for job in lost:
            if (attempt := self._world.legs.get(job)) is not None:
                attempt.lost(job, address)
        if self._learner is not None:
            self._learner.restarted(address)

    def came_up(self, address: str) -> None:
        """An engine is there again."""
        if (instance := self.fleet.get(address)) is not None:
            instance.came_up()

    def scraped(self, gauges: Mapping[str, Gauges]) -> None:
        """What the engines tell of themselves was asked."""
        if (follows := self._world.follows) is not None:
            follows.scraped(gauges)
        if self._learner is None:
            return
        now_s = self._time.now_s
        for address, told in gauges.items():
            instance, own = self.fleet.get(address), self._world.sent[address]
            if instance is None or instance.status is not Status.UP:
                continue
            known = Told(now_s, told.running, told.waiting, told.usage, own)
            instance.told_gauges(known)
            self._learner.scraped(address, known)

    # -- requests -------------------------------------------------------------------------------------------

    def ask(self, call: Call) -> None:
        """A request comes, or is tried again."""
        request = call.request
        prompt: Prompt | None = None
        if self.reads_prompt and not (self._unknown and self._dice.random() < self._unknown):
            prompt = self._keys.prompt(request, call.keys)
        question = Question(
            request.model or MODEL,
            prompt,
            request.input_tokens,
            generated_tokens=self._answer_tokens,
            session=request.session if self.placement.reads_session else None,
        )
        begun = clocks.perf_counter_ns()
        turn = self.lanes.turn(call.ticket, question, failed=call.failed)
        self._waiting[turn] = call, self._time.now_s
        outcomes = self.lanes.offer(turn, self._time.now_s)
        call.record.decided_ns += clocks.perf_counter_ns() - begun
        self._tell(outcomes)
        if turn in self._waiting:
            self._time.after(self.lanes.left_s(turn), Turn.LOOK, self._expire, turn)
            self._watch_moments()

    def _expire(self, turn: Wait) -> None:
        if turn in self._waiting:
            self._tell([self.lanes.expire(turn, self._time.now_s)])

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            call, since_s = self._waiting.pop(outcome.turn)
            call.record.waited_s += self._time.now_s - since_s
            if isinstance(outcome, Refusal):
                if not isinstance(error := outcome.error, RequestError):
                    words = f"the policy has failed: {type(error).__name__}: {error}"
                    raise ConfigError(words) from error
                self.end(call, End.REFUSED)
            else:
                Attempt(self._world, call, outcome.admitted)

    def _failed(self, call: Call) -> None:
        """An attempt has failed: try again, if the request may."""
        if call.failed.total() >= ATTEMPTS:
            self.end(call, End.FAILED)
        else:
            self._time.after(0.0, Turn.ASK, self.ask, call)

    def end(self, call: Call, end: End) -> None:
        """A request has ended."""
        record = call.record
        if record.end is not None:
            raise RuntimeError("a request has ended twice")
        record.end, record.ended_s = end, self._time.now_s
        call.ticket.let_go()
        call.over()

    @property
    def at_rest(self) -> bool:
        """Whether nothing is claimed, waits or runs."""
        claimed = any(instance.running_legs() for instance in self.fleet)
        return not (claimed or self._world.legs or self._waiting or len(self.lanes))

    # -- the queue, as a loop would serve it ----------------------------------------------------------------

    def _woken(self) -> None:
        if self.lanes.due:
            self._time.after(0.0, Turn.LOOK, self._look)
        else:
            self._watch_moments()

    def _look(self) -> None:
        self._tell(self.lanes.changed(self._time.now_s))
        self._watch_moments()

    def _watch_moments(self) -> None:
        left_s = self.lanes.look_again_in_s(self._time.now_s)
        if left_s is None:
            return
        due_s = self._time.now_s + max(LOOK_S, left_s)
        if self._looks_at is None or due_s < self._looks_at:
            self._looks_at = due_s
            self._time.at(due_s, Turn.LOOK, self._moment, due_s)

    def _moment(self, due_s: float) -> None:
        if self._looks_at == due_s:
            self._looks_at = None
            self._look()


def _nobody_hears(_: Happening) -> None:
    """What happens in the queue is in the records."""
