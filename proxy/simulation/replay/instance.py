"""A skipped step changes what a plain one would have changed: nothing but positions, lengths and the time.

One engine of the fleet, by the scheduler, cache, holds and latencies of `engine`. Steps that do nothing but
generate a token of each running request are not carried out: as many as are alike are taken at once, with the
sum of their durations. What reaches the engine meanwhile waits for the end of the step under way, as it would
wait in a real engine, and the steps behind that one are given back.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from kvevents import Event
from proxy.simulation.engine.holds import HEARTBEATS_PER_LEASE, Holds
from proxy.simulation.engine.kv_cache import KvCache
from proxy.simulation.engine.request import Status
from proxy.simulation.engine.scheduler import Plan, Scheduler
from proxy.simulation.engine.values import EngineShape
from proxy.simulation.replay.contents import NamedContents
from proxy.simulation.replay.job import Job, Pulled
from proxy.simulation.replay.timeline import Timeline, Turn
from proxy.simulation.replay.use import Use

Publish = Callable[[list[Event]], None]


class Gauges(NamedTuple):
    """What an engine tells of itself (`vllm:num_requests_waiting`, `running`, `kv_cache_usage_perc`)."""

    waiting: int
    running: int
    usage: float


class ReplayedInstance:
    """One engine in simulated time."""

    def __init__(
        self,
        time: Timeline,
        address: str,
        shape: EngineShape,
        contents: NamedContents,
        *,
        publish: Publish | None = None,
        speed: float = 1.0,
        skips: bool = True,
    ) -> None:
        """`publish`: called with the events of each step as it ends; `speed`: how many times as fast as its
        profile it is; `skips`: whether steps that are alike are taken at once.
        """
        self.address = address
        self.shape = shape
        self.use = Use()
        self._time = time
        self._contents = contents
        self._publish = publish
        self._speed = speed
        self._skips = skips
        self.holds: Holds[Job]
        self.cache: KvCache[Job]
        self.scheduler: Scheduler[Job]
        self._jobs: dict[str, Job]
        self._peers: set[str]
        self.life = 0
        """How often it has died; what was planned in an earlier life does not happen."""
        self.alive = True
        self._turn = 0
        """The number of the step, or steps, under way; what was planned for others does not happen."""
        self._busy = False
        self._wakes = False
        self._skipping: _Skipping | None = None
        self._start()

    def _start(self) -> None:
        shape = self.shape
        self.cache = KvCache(
            shape.blocks, shape.block_size, self._contents, prefix_caching=shape.prefix_caching
        )
        self.scheduler = Scheduler(
            self.cache, max_batched_tokens=shape.max_batched_tokens, max_sequences=shape.max_sequences
        )
        self.holds = Holds(shape.lease_s)
        self._jobs = {}
        self._peers = set()

    # -- what the router asks -------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """The number of jobs that wait, pull or run."""
        return len(self._jobs)

    def gauges(self) -> Gauges:
        """What it tells of itself now."""
        return Gauges(self.scheduler.waiting, len(self.scheduler.running), self.cache.pool.usage)

    def add(self, job: Job) -> None:
        """A leg arrives."""
        self._jobs[job.id] = job
        self.scheduler.add(job)
        if job.pull is not None:
            self._time.after(
                self.shape.lease_s / HEARTBEATS_PER_LEASE, Turn.END, self._beat, self.life, job, job.pull
            )
        self._touched()

    def let_go(self, job: Job, *, pulled: bool) -> None:
        """End a hold; `pulled`: its blocks were read."""
        held = self.holds.pull(job.id) if pulled else self.holds.release(job.id)
        if held is not None:
            self._stop()
            self.cache.free(held)
            self._touched()

    def die(self) -> list[Job]:
        """The process ends, with all that was in it. Returns the jobs that are lost."""
        self.alive = False
        lost = list(self._jobs.values())
        self.life += 1
        self._turn += 1
        self._busy, self._wakes, self._skipping = False, False, None
        self._start()
        return lost

    def come_back(self) -> None:
        """Another process is there, with an empty cache."""
        self.alive = True

    # -- steps ----------------------------------------------------------------------------------------------

    def _touched(self) -> None:
        """Something has changed: the next step may be another than was planned."""
        if self._busy:
            self._stop()
        elif not self._wakes:
            self._wakes = True
            self._time.after(0.0, Turn.BEGIN, self._wake, self.life)

    def _wake(self, life: int) -> None:
        if life == self.life:
            self._wakes = False
            if not self._busy:
                self._begin()

    def _begin(self) -> None:
        now_s = self._time.now_s
        for job in self.holds.expire(now_s):
            self.cache.free(job)
        if self._skips and (steps := self._quiet_steps()):
            running = self.scheduler.running
            skipping = _Skipping(
                now_s, steps, len(running), sum(j.computed for j in running) + len(running), self._usage()
            )
            self._skipping = skipping
            self._plan_end(skipping.end_s(steps, self._decode_s), self._end_skipping)
            return
        plan = self.scheduler.schedule(now_s)
        if not plan:
            return
        for job in plan.pulls:
            self._pull(job)
        self.use.preemptions += len(plan.preempted)
        prefills = [(c.count, c.start + c.count) for c in plan.chunks if c.count > 1]
        decodes = [c.start + 1 for c in plan.chunks if c.count == 1]
        duration_s = self.shape.profile.step_s(prefills, len(decodes), sum(decodes), self._usage())
        duration_s /= self._speed
        self.use.begins(now_s, len(self.scheduler.running), self.scheduler.waiting, self._usage())
        self.use.stepped(now_s, duration_s, prefilled_tokens=sum(count for count, _ in prefills))
        self._plan_end(now_s + duration_s, self._end_step, plan)

    def _usage(self) -> float:
        return self.cache.pool.usage

    def _decode_s(self, steps: int, skipping: "_Skipping") -> float:
        profile = self.shape.profile
        return profile.decode_s(steps, skipping.sequences, skipping.context, skipping.usage) / self._speed

    def _quiet_steps(self) -> int:
        steps = self.scheduler.quiet_steps()
        if steps:
            for job in self.scheduler.running:
                generated = job.length - job.prompt_tokens
                left = job.output_tokens - generated - 1 if generated else 0
                steps = min(steps, left)
        return steps

    def _plan_end(self, end_s: float, do: Callable[..., None], *what: object) -> None:
        self._busy = True
        self._turn += 1
        self._time.at(end_s, Turn.END, do, self._turn, *what)

    def _end_step(self, turn: int, plan: Plan[Job]) -> None:
        if turn != self._turn:
            return
        self._busy = False
        now_s = self._time.now_s
        steady, at_s, use = 0, 0.0, self.use
        ended: list[Job] = []
        begun: list[Job] = []
        for chunk in plan.chunks:
            job = chunk.request
            if job.status is not Status.RUNNING or chunk.start + chunk.count != job.length:
                continue
            job.length += 1
            use.generated_tokens += 1
            if job.first_token_s is None:
                job.first_token_s = now_s
                begun.append(job)
            elif job.last_token_s == at_s:
                steady += 1
            else:
                if steady:
                    use.gaps.append((now_s - at_s, steady))
                steady, at_s = 1, job.last_token_s
            job.last_token_s = now_s
            if job.length - job.prompt_tokens >= job.output_tokens:
                ended.append(job)
        if steady:
            use.gaps.append((now_s - at_s, steady))
        for job in ended:
            self._finish(job)
        self._tell_events()
        for job in begun:
            job.begun(job)
        for job in ended:
            job.ended(job)
        self._touched()

    def _finish(self, job: Job) -> None:
        job.status = Status.LENGTH
        self.scheduler.remove(job)
        del self._jobs[job.id]
        if job.hold:
            self.holds.add(job, (), self._time.now_s)
        else:
            self.cache.free(job)

    def _tell_events(self) -> None:
        events = self.cache.take_events()
        if events and self._publish is not None:
            self._publish(events)

    # -- steps that are alike -------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Let the steps that are taken at once end with the one under way."""
        if (skipping := self._skipping) is None:
            return
        now_s = self._time.now_s
        steps = skipping.until(now_s, self._decode_s)
        if steps < skipping.steps:
            skipping.steps = steps
            self._plan_end(skipping.end_s(steps, self._decode_s), self._end_skipping)

    def _end_skipping(self, turn: int) -> None:
        skipping = self._skipping
        if turn != self._turn or skipping is None:
            return
        self._busy, self._skipping = False, None
        now_s, steps, use = self._time.now_s, skipping.steps, self.use
        running = self.scheduler.running
        self.scheduler.skip(steps)
        first_s = skipping.end_s(1, self._decode_s)
        late = 0
        for job in running:
            job.length += steps
            if job.last_token_s != skipping.start_s:
                use.gaps.append((first_s - job.last_token_s, 1))
                late += 1
            job.last_token_s = now_s
        if gaps := steps * len(running) - late:
            use.gaps.append(((now_s - skipping.start_s) / steps, gaps))
        use.stepped(skipping.start_s, now_s - skipping.start_s, steps=steps)
        use.generated_tokens += steps * len(running)
        self._touched()

    # -- blocks of other engines ----------------------------------------------------------------------------

    def _pull(self, job: Job) -> None:
        pull: Pulled = job.pull
        job.pull = None
        remote = pull.engine
        first = remote.address not in self._peers
        self._peers.add(remote.address)
        seconds = self.shape.profile.transfer_s(job.external_hit, first=first)
        self._time.after(seconds, Turn.END, self._pulled, self.life, job, pull)

    def _pulled(self, life: int, job: Job, pull: Pulled) -> None:
        if life != self.life:
            return
        self._stop()
        if pull.engine.life != pull.life:  # the blocks are lost
            self.scheduler.remove(job)
            del self._jobs[job.id]
            self.cache.free(job)
            job.status = Status.FAILED
            job.failed(job, pull.engine.address)
        else:
            pull.engine.let_go(pull.job, pulled=True)
            job.computed += job.external_hit
            self.cache.cache(job, job.computed)
            job.computed -= 1
            job.status = Status.WAITING
            self.scheduler.arrived()
        self._touched()

    def _beat(self, life: int, job: Job, pull: Pulled) -> None:
        """Prolong the lease of a hold that is still wanted."""
        wanted = life == self.life and job.id in self._jobs and job.first_token_s is None
        if wanted and pull.engine.life == pull.life:
            pull.engine.holds.heartbeat([pull.job.id], self._time.now_s)
            seconds = self.shape.lease_s / HEARTBEATS_PER_LEASE
            self._time.after(seconds, Turn.END, self._beat, life, job, pull)


class _Skipping:
    """Steps that are alike, taken at once."""

    __slots__ = ("context", "sequences", "start_s", "steps", "usage")

    def __init__(self, start_s: float, steps: int, sequences: int, context: int, usage: float) -> None:
        self.start_s = start_s
        self.steps = steps
        self.sequences = sequences
        self.context = context
        self.usage = usage

    def end_s(self, steps: int, decode_s: "Callable[[int, _Skipping], float]") -> float:
        """When so many of them are over."""
        return self.start_s + decode_s(steps, self)

    def until(self, now_s: float, decode_s: "Callable[[int, _Skipping], float]") -> int:
        """How many are over when the one under way has ended."""
        return 1 + bisect_left(
            range(1, self.steps), True, key=lambda steps: self.end_s(steps, decode_s) >= now_s
        )
