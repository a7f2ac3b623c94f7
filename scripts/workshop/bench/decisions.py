"""Measures what admitting a request costs in a healthy fleet at work: CPU time of this process.

Each request passes the gate, and the oldest running one ends, with its claims and its expected blocks. Three
quarters of a known prompt are cached on an eighth of the engines, on one at least. Engines have told their
gauges, and latencies are learned of each before anything is measured.

A decision alone is measured beside what runs then, with an index that answers from a table: what its query
costs is measured by itself.
"""

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from kvevents import BlockStored, PrefixIndex, Prompt
from proxy.admission import Admitted, Gate, Ticket
from proxy.config import MAIN_TIER, Admission, Config, Rules, parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.fleet.gauges import Gauges
from proxy.happenings import Happening, LegBegan, LegEnded
from proxy.latency.fits import PoolName
from proxy.latency.learner import SERVED, LatencyLearner
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN
from proxy.phases import Phase, Role
from proxy.request.deadlines import Goal
from proxy.scheduling.decision import Decision
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import POLICIES
from proxy.scheduling.question import Question
from proxy.scheduling.types import reads_latency

MODEL = "m"
BLOCK = 16
PROMPT_TOKENS = 256
"""About 1 KB of text."""
PROMPTS = 50
RUNNING = 4
"""Requests that run, for each engine that decodes."""
MAX_MODEL_LEN = 8192
LEARNED = 4000
"""Legs of which latencies are learned before anything is measured: a pool passes most over after that."""
ARRIVAL_S = 0.1
"""Between two legs of an engine, where latencies are learned."""
ANSWER_TOKENS = 100
COUNTED = 0.1
"""The share of streams whose tokens are counted."""
LEAST, MOST_S = 5, 0.2
"""So many decisions are timed at least, and no more once so many seconds are spent."""
NEVER_MS = 1_000_000
"""A goal that every pair meets, and a limit that none reaches: both have to be looked at."""


class _Exact:
    """A source of events that is followed from its beginning."""

    state = "exact"
    epoch = 0


class _Table(PrefixIndex):
    """An index that answers what it was asked once from a table, if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[int, dict[tuple[str, int], int]] | None = None

    def match_tier(self, prompt: Prompt, tier: str = MAIN_TIER) -> dict[tuple[str, int], int]:
        """As `PrefixIndex` has it."""
        if self.answers is None:
            return super().match_tier(prompt, tier)
        found = self.answers.get(id(prompt))
        if found is None:
            found = self.answers[id(prompt)] = super().match_tier(prompt, tier)
        return found


class Size(msgspec.Struct, frozen=True):
    """How large a fleet is: so many for prefill and so many for decode, or so many that do both."""

    engines: int
    both: bool = False

    @classmethod
    def of(cls, words: str) -> "Size":
        """Of `8`, or of `16b`. Raises ValueError."""
        return cls(int(words.removesuffix("b")), both=words.endswith("b"))

    @property
    def roles(self) -> Sequence[Role]:
        """Of the engines."""
        return (Role.BOTH,) if self.both else (Role.PREFILL, Role.DECODE)

    def __str__(self) -> str:
        return f"{self.engines} both" if self.both else f"{self.engines}+{self.engines}"


class Bench:
    """A fleet, and the gate before it."""

    def __init__(self, size: Size, policy: str) -> None:
        self._rng = random.Random(size.engines)  # noqa: S311  # the same prompts in every run
        self._index = _Table()
        self._fleet = fleet = Fleet()
        for role, n in itertools.product(size.roles, range(size.engines)):
            instance = Instance(parse_instance(f"{role}{n}:8000", role))
            fleet.add(instance)
            instance.listed([ModelCard(MODEL, max_model_len=MAX_MODEL_LEN)], 0.0)
            instance.is_followed({0: _Exact()})
            instance.came_up()
        self._running = RUNNING * size.engines
        self._prompts = [self._rng.choices(range(30_000), k=PROMPT_TOKENS) for _ in range(PROMPTS)]
        self._cache_some(fleet)
        self._policy = policy
        chooser = POLICIES[policy]()
        self.learns = reads_latency(chooser)
        self._latency = LatencyModel(PROFILES[UNKNOWN])
        self._learner = LatencyLearner(self._latency, self._pool_of)
        self._clock = time.monotonic
        self._ended_at = 0.0
        self._streams: deque[LegEnded] = deque()
        """Those that have begun, as they will end."""
        if self.learns:
            self._learn(LEARNED)
        self._placement = self._place()
        rules = Rules(Config(model=MODEL))
        self._gate = Gate(
            fleet=fleet, placement=self._placement, rules=rules, tell=_unheard, clock=self._clock
        )
        self._knows = getattr(chooser, "reads_prompt", True)

    def _place(self, limits: Admission | None = None) -> Placement:
        return Placement(
            self._fleet,
            self._index,
            POLICIES[self._policy](),
            self._policy,
            clock=self._clock,
            rng=random.Random(1),  # noqa: S311
            limits=limits,
            latency=self._latency,
        )

    def _pool_of(self, address: str) -> PoolName | None:
        instance = self._fleet.get(address)
        return None if instance is None else PoolName(str(instance.role), MODEL)

    def _cache_some(self, fleet: Fleet) -> None:
        numbers = itertools.count()
        instances = list(fleet)
        for tokens in self._prompts:
            for instance in self._rng.sample(instances, max(1, len(instances) // 8)):
                cached = tokens[: PROMPT_TOKENS * 3 // 4]
                hashes: list[int | bytes] = [next(numbers) for _ in range(len(cached) // BLOCK)]
                self._index.store(instance.address, 0, BlockStored(hashes, None, cached, BLOCK, medium="GPU"))

    def _questions(self, count: int) -> list[Question]:
        asked = self._rng.choices(self._prompts, k=count)
        return [
            Question(
                MODEL, Prompt(tokens) if self._knows else None, PROMPT_TOKENS, answer_tokens=ANSWER_TOKENS
            )
            for tokens in asked
        ]

    async def admission_us(self, count: int) -> float:
        """Microseconds a request."""
        self._tell_gauges()
        questions = self._questions(count)
        tickets = [Ticket() for _ in questions]
        running: deque[Admitted] = deque()
        admit, began = self._gate.admit, time.process_time()
        for ticket, question in zip(tickets, questions, strict=True):
            ticket.keep()
            running.append(await admit(ticket, question))
            ticket.let_go()
            if len(running) > self._running:
                running.popleft().close()
        spent_s = time.process_time() - began
        for admitted in running:
            admitted.close()
        return spent_s / count * 1e6

    def lookup_us(self, count: int) -> float:
        """Of that, what it takes to make the keys of a prompt and to ask the index for it."""
        prompts = [question.prompt for question in self._questions(count)]
        began = time.process_time()
        for prompt in prompts:
            if prompt is not None:
                self._index.match(prompt)
        return (time.process_time() - began) / count * 1e6

    async def decisions_us(self, count: int) -> dict[str, float]:
        """Microseconds of each kind of decision without the index's query, beside what runs."""
        running = []
        for question in self._questions(self._running):
            ticket = Ticket()
            ticket.keep()
            running.append(await self._gate.admit(ticket, question))
            ticket.let_go()
        self._tell_gauges()
        self._index.answers = {}
        questions = self._questions(count)
        for question in questions:
            self._placement.decide(question, shown=False)
        wanted = Goal(NEVER_MS, self._clock() + NEVER_MS / 1000)
        with_goals = [msgspec.structs.replace(question, goal=wanted) for question in questions]
        limited = self._place(Admission(max_prefill_tokens=NEVER_MS, max_decode_tokens=NEVER_MS))
        failed = {next(iter(self._fleet)).address}
        place = self._placement
        found = {"its decision": _each_us(place.decide_to_follow, questions)}
        if self.learns:
            found |= {
                "within limits": _each_us(limited.decide_to_follow, questions),
                "after a failure": _each_us(partial(place.decide_to_follow, failed=failed), questions),
                "with a goal": _each_us(place.decide_to_follow, with_goals),
                "to be shown": _each_us(place.decide, questions),
            }
        self._index.answers = None
        for admitted in running:
            admitted.close()
        return found

    def _tell_gauges(self) -> None:
        """Engines tell what runs there: nothing of others."""
        now = self._clock()
        for instance in self._fleet:
            legs = instance.running_legs()
            instance.told_gauges(Gauges(now, running=legs, waiting=0, kv_use=0.1, own=legs))

    def learning_us(self, count: int) -> float:
        """Microseconds that learning from a request's legs takes."""
        return self._learn(count)

    def _learn(self, count: int) -> float:
        """Of so many requests that are served one after the other, wherever it may be."""
        told = sorted((each for _ in range(count) for each in self._legs()), key=_at)
        hear = self._learner.hear
        began = time.process_time()
        for each in told:
            hear(each)
        return (time.process_time() - began) / count * 1e6

    def _legs(self) -> Iterator[LegBegan | LegEnded]:
        """What is told of a request: its prompt takes 20 ms or so, and its 100 tokens a second."""
        choice, uniform = self._rng.choice, self._rng.uniform
        decode = choice(self._fleet.of(Phase.DECODE))
        self._ended_at += ARRIVAL_S / len(self._fleet.of(Phase.DECODE))
        began_at = self._ended_at
        uncached = self._rng.randint(PROMPT_TOKENS // 4, PROMPT_TOKENS)
        at = began_at + (0.01 + 0.00005 * uncached) * uniform(0.9, 1.1)
        pulled_from = None
        if decode.role is Role.DECODE:
            pulled_from = choice(self._fleet.of(Phase.PREFILL)).address
            yield LegEnded(Phase.PREFILL, pulled_from, 0, began_at, at, SERVED, True, uncached, PROMPT_TOKENS)
            began_at, at = at, at + 0.015 * uniform(0.9, 1.1)
        yield LegBegan(decode.address, 0, began_at, at, PROMPT_TOKENS, uncached, pulled_from)
        self._streams.append(
            LegEnded(
                Phase.DECODE,
                decode.address,
                0,
                began_at,
                at + ANSWER_TOKENS * 0.01 * uniform(0.9, 1.1),
                SERVED,
                True,
                uncached,
                PROMPT_TOKENS,
                first_token_at=at,
                pulled_from=pulled_from,
                generated=None if self._rng.random() > COUNTED else ANSWER_TOKENS,
            )
        )
        while len(self._streams) > self._running:
            yield self._streams.popleft()


def _unheard(_: Happening) -> None:
    """Nobody hears what is told."""


def _at(told: LegBegan | LegEnded) -> float:
    return told.at if isinstance(told, LegBegan) else told.ended_at


def _each_us(decide: Callable[[Question], Decision], questions: Sequence[Question]) -> float:
    """Of as many questions as take a fifth of a second, a few at least."""
    began, count = time.process_time(), 0
    for question in questions:
        decide(question)
        count += 1
        if count >= LEAST and time.process_time() - began > MOST_S:
            break
    return (time.process_time() - began) / count * 1e6


def run(sizes: Sequence[Size], requests: int, rounds: int) -> None:
    """Print a table in Markdown: microseconds by policy, by what they are spent on, and by size."""
    print("| policy | CPU of | " + " | ".join(map(str, sizes)) + " |")
    print("| --- | --- |" + " --- |" * len(sizes))
    for policy in POLICIES:
        rows: dict[str, list[str]] = {}
        for size in sizes:
            for name, us in _of_one(Bench(size, policy), requests, rounds).items():
                rows.setdefault(name, []).append(f"{us:.1f} us")
        for name, cells in rows.items():
            print(f"| {policy} | {name} | " + " | ".join(cells) + " |", flush=True)


def _of_one(bench: Bench, requests: int, rounds: int) -> Mapping[str, float]:
    """The best of the rounds, because whatever else runs can only add to it."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        found = {
            "admission": asyncio.run(bench.admission_us(requests)),
            "of it the index": bench.lookup_us(requests),
            **asyncio.run(bench.decisions_us(requests)),
        }
        if bench.learns:
            found["learning"] = bench.learning_us(requests)
        for name, us in found.items():
            best[name] = min(us, best.get(name, us))
    return best
