"""Measures what admitting a request costs in a healthy fleet at work: CPU time of this process.

Each request passes the gate, and the oldest running one ends, with its claims and its expected blocks. Three
quarters of a known prompt are cached on an eighth of the engines, on one at least.
"""

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Sequence

from kvevents import BlockStored, PrefixIndex, Prompt
from proxy.admission import Admitted, Gate, Ticket
from proxy.config import Config, Rules, parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.happenings import Happening
from proxy.phases import Role
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import POLICIES
from proxy.scheduling.question import Question

MODEL = "m"
BLOCK = 16
PROMPT_TOKENS = 256
"""About 1 KB of text."""
PROMPTS = 50
RUNNING = 32
MAX_MODEL_LEN = 8192


class _Exact:
    """A source of events that is followed from its beginning."""

    state = "exact"
    epoch = 0


class Bench:
    """A fleet, and the gate before it."""

    def __init__(self, size: int, policy: str) -> None:
        """`size`: how many prefill and how many decode engines."""
        self._rng = random.Random(size)  # noqa: S311  # the same prompts in every run
        self._index = PrefixIndex()
        fleet = Fleet()
        for role, n in itertools.product((Role.PREFILL, Role.DECODE), range(size)):
            instance = Instance(parse_instance(f"{role}{n}:8000", role))
            fleet.add(instance)
            instance.listed([ModelCard(MODEL, max_model_len=MAX_MODEL_LEN)], 0.0)
            instance.is_followed({0: _Exact()})
            instance.came_up()
        self._prompts = [self._rng.choices(range(30_000), k=PROMPT_TOKENS) for _ in range(PROMPTS)]
        self._cache_some(fleet)
        chooser = POLICIES[policy]()
        placement = Placement(
            fleet,
            self._index,
            chooser,
            policy,
            clock=time.monotonic,
            rng=random.Random(1),  # noqa: S311
        )
        rules = Rules(Config(model=MODEL))
        self._gate = Gate(fleet=fleet, placement=placement, rules=rules, tell=_unheard, clock=time.monotonic)
        self._knows = getattr(chooser, "reads_prompt", True)

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
            Question(MODEL, Prompt(tokens) if self._knows else None, PROMPT_TOKENS, answer_tokens=100)
            for tokens in asked
        ]

    async def request_us(self, count: int) -> float:
        """Microseconds a request."""
        questions = self._questions(count)
        tickets = [Ticket() for _ in questions]
        running: deque[Admitted] = deque()
        admit, began = self._gate.admit, time.process_time()
        for ticket, question in zip(tickets, questions, strict=True):
            ticket.keep()
            running.append(await admit(ticket, question))
            ticket.let_go()
            if len(running) > RUNNING:
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


def _unheard(_: Happening) -> None:
    """Nobody hears what is told."""


def run(sizes: Sequence[int], requests: int, rounds: int) -> None:
    """Print a table in Markdown: microseconds a request by policy and size, and those of the index's
    lookup.
    """
    print("| policy | " + " | ".join(f"{size}+{size}" for size in sizes) + " |")
    print("| --- |" + " --- |" * len(sizes))
    for policy in POLICIES:
        cells = []
        for size in sizes:
            bench = Bench(size, policy)
            took = min(asyncio.run(bench.request_us(requests)) for _ in range(rounds))
            lookup = min(bench.lookup_us(requests) for _ in range(rounds))
            cells.append(f"{took:.1f} us" + (f" ({lookup:.1f} of it the index)" if lookup > 1 else ""))
        print(f"| {policy} | " + " | ".join(cells) + " |", flush=True)
