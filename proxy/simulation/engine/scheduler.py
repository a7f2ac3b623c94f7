"""Invariant: a step computes at most `max_batched_tokens`, for running requests first, oldest first.

Continuous batching with chunked prefill: each step gives every running request the tokens it lacks while
the budget lasts, then admits waiting requests in order of arrival. A request is admitted only if its whole
prompt fits; what it generates may not, and then the youngest running request loses all its blocks and
starts over from the head of the queue - usually to find most of them still cached. A batch has at most
`max_loras` adapters: requests for another one wait, and those behind them are admitted before.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from proxy.simulation.engine.kv_cache import KvCache
from proxy.simulation.engine.request import Status, Work

W = TypeVar("W", bound=Work)


@dataclass(slots=True)
class Chunk(Generic[W]):
    """`count` tokens of a request from position `start` on, to be computed in one step."""

    request: W
    start: int
    count: int


@dataclass(slots=True)
class Plan(Generic[W]):
    """What one step computes, and the requests whose prompts now are to be pulled from another engine."""

    chunks: list[Chunk[W]] = field(default_factory=list)
    admitted: list[W] = field(default_factory=list)
    pulls: list[W] = field(default_factory=list)
    unread: list[W] = field(default_factory=list)
    """Requests that compute their whole prompt although another engine holds it for them."""
    preempted: list[W] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything happens in this step."""
        return bool(self.chunks or self.pulls or self.preempted)


class Paused(StrEnum):
    """What is not scheduled during a pause; new requests wait in any case."""

    NEW = "new"
    ALL = "all"


class Scheduler(Generic[W]):
    """Decides which tokens the next step computes. Holds every unfinished request."""

    def __init__(
        self, cache: KvCache[W], *, max_batched_tokens: int, max_sequences: int, max_loras: int = 1
    ) -> None:
        self._cache = cache
        self._max_loras = max_loras
        self._max_batched_tokens = max_batched_tokens
        self._max_sequences = max_sequences
        self._waiting: deque[W] = deque()
        # Requests whose blocks are allocated for a pull: they are scheduled first, once the KV is there.
        self._pulling: deque[W] = deque()
        self._shut_at: int | None = None
        """`cache.frees` when nobody who waits could be admitted for want of room, or nobody waited; None if
        that is not known."""
        self.running: list[W] = []
        self.paused: Paused | None = None

    @property
    def waiting(self) -> int:
        """The number of requests in the queue, those that wait for a pull included."""
        return len(self._waiting) + len(self._pulling)

    @property
    def deferred(self) -> int:
        """The number of waiting requests that lack something other than room: the KV of a pull."""
        return sum(1 for request in self._pulling if request.status is Status.PULLING)

    @property
    def holding(self) -> int:
        """The number of requests that have blocks."""
        return len(self.running) + len(self._pulling)

    def __iter__(self) -> Iterator[W]:
        """Every unfinished request."""
        yield from self.running
        yield from self._pulling
        yield from self._waiting

    def add(self, request: W) -> None:
        """Queue a new request."""
        self._waiting.append(request)
        self._shut_at = None

    def requeue(self, request: W) -> None:
        """A pull failed, and the prompt is to be computed here: put the request at the head of the queue."""
        self._pulling.remove(request)
        self._cache.free(request)
        request.start_over()
        request.pull, request.status = None, Status.WAITING
        self._waiting.appendleft(request)
        self._shut_at = None

    def arrived(self) -> None:
        """The KV of a pull is there: its request may be admitted now."""
        self._shut_at = None

    def remove(self, request: W) -> None:
        """Forget a finished request; the caller frees its blocks."""
        self._shut_at = None
        for queue in (self.running, self._pulling, self._waiting):
            if request in queue:
                queue.remove(request)

    def schedule(self, now_s: float) -> Plan[W]:
        """Choose the tokens of the next step; from now on they count as computed."""
        plan: Plan[W] = Plan()
        if self.paused is Paused.ALL:
            return plan
        budget = self._schedule_running(plan)
        self._shut_at = None
        if not plan.preempted and self._admit(plan, budget, now_s):
            self._shut_at = self._cache.frees
        for chunk in plan.chunks:
            chunk.request.computed += chunk.count
        return plan

    def quiet_steps(self) -> int:
        """How many of the coming steps do nothing but compute one token of each running request: they take no
        block, fill none and admit nobody, so they can be skipped. At most as many as there are tokens to
        compute: who generates them knows when a request ends. Not for blocks whose names cover tokens behind
        them.
        """
        size, running = self._cache.block_size, self.running
        if not running or len(running) > self._max_batched_tokens or self._shut_at != self._cache.frees:
            return 0
        steps = size
        for request in running:
            within = request.computed % size
            if request.length - request.computed != 1 or not within:
                return 0  # at the first token of a block a block is taken
            # The token that fills the block takes a step of its own.
            steps = min(steps, size - 1 - within)
        return steps

    def skip(self, steps: int) -> None:
        """So many of the `quiet_steps` are over; the caller makes the requests longer."""
        for request in self.running:
            request.computed += steps

    def preempt_all(self) -> None:
        """Take the blocks of all running requests, which wait to be computed again."""
        while self.running:
            self._preempt(self.running.pop())

    def _schedule_running(self, plan: Plan[W]) -> int:
        budget = self._max_batched_tokens
        index = 0
        while index < len(self.running) and budget:
            request = self.running[index]
            count = min(request.length - request.computed, budget)
            while not self._cache.grow(request, request.computed + count):
                victim = self.running.pop()
                self._preempt(victim)
                plan.preempted.append(victim)
                if victim is request:
                    return 0
            self._take(plan, request, count)
            budget -= count
            index += 1
        return budget

    def _admit(self, plan: Plan[W], budget: int, now_s: float) -> bool:
        """Returns whether nobody more could be admitted for want of room, or nobody waits."""
        loras = {r.lora for r in self.running if r.lora is not None}
        for request in [r for r in self._pulling if r.status is Status.WAITING]:
            if not budget or len(self.running) >= self._max_sequences:
                return budget > 0
            if not self._has_slot(request, loras):
                continue
            count = min(request.length - request.computed, budget)
            if not self._cache.grow(request, request.computed + count):
                return True
            self._pulling.remove(request)
            self._run(plan, request, count, now_s)
            budget -= count
        at = 0
        while not self.paused and at < len(self._waiting) and budget:
            if len(self.running) >= self._max_sequences:
                break
            request = self._waiting[at]
            if not self._has_slot(request, loras):
                at += 1
                continue
            hits = self._cache.lookup(request)
            needed = self._cache.missing(request, request.length, hits)
            if needed > self._cache.pool.free_blocks - (self._reserved() if request.pull else 0):
                return True
            del self._waiting[at]
            self._cache.admit(request, hits)
            plan.admitted.append(request)
            request.computed = len(hits) * self._cache.block_size
            if not request.preemptions:
                request.local_hit = request.computed
            if request.pull is not None and not request.reads_cache:
                plan.unread.append(request)
            elif request.pull is not None:
                self._cache.grow(request, request.length)
                request.status = Status.PULLING
                request.external_hit = request.length - request.computed
                self._pulling.append(request)
                plan.pulls.append(request)
                continue
            count = min(request.length - request.computed, budget)
            self._cache.grow(request, request.computed + count)
            self._run(plan, request, count, now_s)
            budget -= count
        return budget > 0 and not self.paused

    def _has_slot(self, request: W, loras: set[str]) -> bool:
        """Whether the batch may have the request's adapter; then it counts among `loras`."""
        if request.lora is None or request.lora in loras:
            return True
        if len(loras) >= self._max_loras:
            return False
        loras.add(request.lora)
        return True

    def _run(self, plan: Plan[W], request: W, count: int, now_s: float) -> None:
        request.status = Status.RUNNING
        if request.scheduled_s is None:
            request.scheduled_s = now_s
        self.running.append(request)
        self._take(plan, request, count)

    def _take(self, plan: Plan[W], request: W, count: int) -> None:
        plan.chunks.append(Chunk(request, request.computed, count))
        self._cache.cache(request, request.computed + count)

    def _preempt(self, request: W) -> None:
        self._cache.free(request)
        request.start_over()
        request.status = Status.WAITING
        request.preemptions += 1
        self._waiting.appendleft(request)

    def _reserved(self) -> int:
        """The number of blocks that prompts in progress still need: a pull must not take them."""
        partly = (r for r in self.running if r.computed < r.length)
        return sum(self._cache.missing(r, r.length) for r in partly)
