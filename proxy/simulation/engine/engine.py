"""Invariant: the model does nothing by itself: time comes in with each call, and commands come out as values.

One rank of a stand-in engine. A driver calls `begin_step`, lets the step's duration pass (on a wall clock or
a simulated one), calls `end_step`, and passes on what came out: tokens to clients, events to subscribers,
commands to other engines. The model knows no sockets, so to read it is to read the behaviour.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kvevents import Event
from proxy.simulation.engine.contents import TokenContents
from proxy.simulation.engine.holds import HEARTBEATS_PER_LEASE, Holds
from proxy.simulation.engine.kv_cache import KvCache, blocks_for
from proxy.simulation.engine.memory import Content, Memory, initial_state
from proxy.simulation.engine.peers import Peers
from proxy.simulation.engine.request import Remote, Request, Status
from proxy.simulation.engine.scheduler import Chunk, Paused, Scheduler
from proxy.simulation.engine.text import Voice
from proxy.simulation.engine.values import (
    Command,
    EngineDeadError,
    EngineShape,
    Output,
    Pull,
    Stats,
    Step,
)

MEMORIES = frozenset({"weights", "kv_cache"})
"""The memories that sleep from level 1 on, and that can be woken one by one."""

BYTES_PER_TOKEN = 1024
"""The KV bytes of a token, as in the tiny test model: 2 * 4 bytes * 2 layers * 2 heads * 32 values."""


class EngineModel:
    """The state of one rank. `engine_id` and `address` are where other engines find its holds."""

    def __init__(
        self, shape: EngineShape, voice: Voice, engine_id: str, address: tuple[str, int] = ("", 0)
    ) -> None:
        self.shape = shape
        self.voice = voice
        self.engine_id = engine_id
        self.address = address
        self.cache: KvCache[Request] = KvCache(
            shape.blocks,
            shape.block_size,
            TokenContents(shape.block_size, shape.hash_seed, shape.lookahead),
            prefix_caching=shape.prefix_caching,
        )
        self.memory = Memory(shape.block_size)
        self.scheduler: Scheduler[Request] = Scheduler(
            self.cache,
            max_batched_tokens=shape.max_batched_tokens,
            max_sequences=shape.max_sequences,
            max_loras=shape.max_loras,
        )
        self.holds: Holds[Request] = Holds(shape.lease_s)
        self.stats = Stats()
        self.peers = Peers(shape.profile.transfer_s(0, first=True))
        self._requests: dict[str, Request] = {}
        self._wanted: dict[str, Remote] = {}  # by this engine's request id: holds that heartbeats keep alive
        self._commands: list[Command] = []
        self._heartbeat_s = float("-inf")
        self.sleep_level: int | None = None
        """None while the engine is awake."""
        self._sleeping: set[str] = set()

    # What a driver asks.

    @property
    def unfinished(self) -> int:
        """The number of requests that wait, pull or run."""
        return len(self._requests)

    @property
    def queued_tokens(self) -> int:
        """The prompt tokens of the requests that have no first token yet."""
        return sum(r.prompt_length for r in self._requests.values() if not r.generated)

    def add(self, request: Request) -> None:
        """Take a request."""
        if not self.shape.connector:
            request.pull, request.hold = None, False
        self._requests[request.id] = request
        self.scheduler.add(request)
        if request.pull is not None and (remote := Remote.from_params(request.pull)):
            self._wanted[request.id] = remote

    def reject(self, params: Mapping[str, Any]) -> None:
        """A decode leg was refused after it was parsed: its hold is not needed any more."""
        if (
            self.shape.connector
            and params.get("do_remote_prefill")
            and (remote := Remote.from_params(params))
        ):
            self._commands += self.peers.release(remote)

    def abort(self, request_id: str) -> None:
        """A client has gone, or a stop string ended the text: free at once all that can be freed."""
        request = self._requests.get(request_id)
        if request is None or request.status is Status.ABORTED:  # already: its transfer is not over
            return
        pulling = request.status is Status.PULLING
        if request.pull is not None and (remote := self._wanted.get(request_id)):
            self._commands += self.peers.release(remote)
        request.status = Status.ABORTED
        self.scheduler.remove(request)
        if not pulling:  # a transfer writes into its blocks until it is over
            self._forget(request)
            self.cache.free(request)

    def begin_step(self, now_s: float) -> Step | None:
        """Schedule a step; None if there is nothing to do now. Raises EngineDeadError if a request would kill
        the engine.
        """
        plan = self.scheduler.schedule(now_s)
        if not plan:
            return None
        self._commands += self.peers.step()
        self.stats.preemptions += len(plan.preempted)
        for request in plan.admitted:
            self._count_admission(request)
        for request in plan.unread:
            self._leave_unread(request)
        for request in plan.pulls:
            self._start_pull(request)
        for chunk in plan.chunks:
            self._compute(chunk)
        prefills = [(c.count, c.start + c.count) for c in plan.chunks if c.count > 1]
        decodes = [c.start + 1 for c in plan.chunks if c.count == 1]
        duration_s = self.shape.profile.step_s(prefills, len(decodes), sum(decodes), self.cache.pool.usage)
        return Step(plan, duration_s)

    def end_step(self, step: Step, now_s: float) -> list[Output]:
        """The step's time has passed. Returns one token for every request that has caught up."""
        outputs = []
        for chunk in step.plan.chunks:
            request = chunk.request
            if request.status is Status.RUNNING and chunk.start + chunk.count == len(request.tokens):
                outputs.append(self._sample(request, now_s))
        return outputs

    def take_events(self) -> list[Event]:
        """The changes of the cache since the last call; to be published when a step ends."""
        return self.cache.take_events()

    def take_commands(self, now_s: float) -> list[Command]:
        """The commands for other engines that are due now."""
        interval_s = self.shape.lease_s / HEARTBEATS_PER_LEASE
        if self._wanted and now_s - self._heartbeat_s >= interval_s:
            self._heartbeat_s = now_s
            for remote in self._wanted.values():
                self._commands += self.peers.heartbeat(remote)
        commands, self._commands = self._commands, []
        return commands

    def next_deadline_s(self) -> float | None:
        """When something is due by itself: a lease ends, or a heartbeat goes out; None if nothing is."""
        expiry = self.holds.next_expiry_s()
        beat = self._heartbeat_s + self.shape.lease_s / HEARTBEATS_PER_LEASE if self._wanted else None
        return min((t for t in (expiry, beat) if t is not None), default=None)

    def expire(self, now_s: float) -> None:
        """End leases that are over."""
        for request in self.holds.expire(now_s):
            self.cache.free(request)

    def reset_prefix_cache(self) -> bool:
        """Reset the prefix cache. Returns False while requests or holds use blocks. It is announced with the
        next step's events only.
        """
        return self.cache.clear()

    # Sleep, as /sleep and /wake_up have it.

    def pause(self, mode: str) -> list[Output]:
        """Begin no new requests; `mode` says what becomes of the others: `abort`, `wait` (they end), or
        `keep`.
        """
        self.scheduler.paused = Paused.ALL if mode == "keep" else Paused.NEW
        if mode != "abort":
            return []
        ended = []
        for request in list(self._requests.values()):
            self.abort(request.id)
            self.stats.finished[Status.ABORTED.value] += 1
            ended.append(Output(request, None, 0))
        return ended

    @property
    def paused(self) -> bool:
        """Whether the engine is asleep, or about to be."""
        return self.scheduler.paused is not None

    @property
    def drained(self) -> bool:
        """Whether nothing keeps the engine from falling asleep; blocks that others may fetch do."""
        return not self.holds and (self.scheduler.paused is Paused.ALL or not self.scheduler.holding)

    def fall_asleep(self, level: int) -> None:
        """Fall asleep. From level 1 on the cache is lost, and requests that were kept are computed again."""
        self.sleep_level = level
        if level:
            self.scheduler.preempt_all()
            self.reset_prefix_cache()
            self._sleeping |= MEMORIES

    def wake_up(self, memories: Collection[str]) -> bool:
        """Wake these memories (none given: all). Returns whether all are awake, so that the engine goes
        on.
        """
        if not memories:
            self._sleeping.clear()
        elif self._sleeping.issuperset(memories):
            self._sleeping -= set(memories)
        if not self._sleeping:
            self.scheduler.paused = self.sleep_level = None
        return not self._sleeping

    # What another engine asks of our holds.

    def serve_pull(self, request_id: str, blocks: Sequence[int]) -> list[Content]:
        """Copy blocks for a decode engine, and end the hold. Blocks of a hold that has ended are read all the
        same.
        """
        hold = self.holds.get(request_id)
        readable = range(self.cache.pool.size) if self.shape.lucky_reads else (hold.blocks if hold else ())
        contents = [self.memory.read(b) if b in readable else Content.garbage(b) for b in blocks]
        if (request := self.holds.pull(request_id)) is not None:
            self.cache.free(request)
        return contents

    def serve_release(self, request_id: str) -> None:
        """A decode engine will not read a hold."""
        if (request := self.holds.release(request_id)) is not None:
            self.cache.free(request)

    # What became of our own pulls.

    def pulled(self, request_id: str, contents: Sequence[Content]) -> None:
        """The prompt's KV has arrived: cache its blocks. Its last token is still computed here."""
        request = self._requests[request_id]
        if (remote := self._wanted.get(request_id)) is not None:
            self.peers.met(remote.engine_id)
        if request.status is Status.ABORTED:
            self._forget(request)
            self.cache.free(request)
            return
        for block, content in zip(request.table[len(request.table) - len(contents) :], contents, strict=True):
            self.memory.replace(block, content)
        tokens = request.external_hit
        self.stats.transfers += 1
        self.stats.transferred_bytes += len(contents) * self.shape.block_size * BYTES_PER_TOKEN
        self._wanted.pop(request_id, None)
        request.computed += tokens
        self.cache.cache(request, request.computed)
        request.computed -= 1
        request.status = Status.WAITING

    def pull_failed(self, request_id: str) -> list[Output]:
        """The other engine does not answer, or is another process: compute here or fail, as configured."""
        request = self._requests[request_id]
        self.stats.failed_transfers += 1
        self._wanted.pop(request_id, None)
        if request.status is Status.ABORTED:
            self._forget(request)
            self.cache.free(request)
        elif self.shape.recompute:
            request.external_hit = 0
            self.scheduler.requeue(request)
        else:
            self._finish(request, Status.FAILED)
            return [Output(request, None, 0)]
        return []

    # Inside.

    def _count_admission(self, request: Request) -> None:
        if request.preemptions:
            return
        length = len(request.tokens)
        if request.reads_cache:
            self.stats.prefix_queries += length
            self.stats.prefix_hits += request.local_hit
        if self.shape.connector:
            self.stats.external_queries += length - request.local_hit
            self.stats.external_hits += request.external_hit

    def _leave_unread(self, request: Request) -> None:
        request.pull = None
        if (remote := self._wanted.pop(request.id, None)) is not None:
            self._commands += self.peers.release(remote)

    def _start_pull(self, request: Request) -> None:
        params, request.pull = request.pull or {}, None
        if not params.get("remote_block_ids"):
            raise EngineDeadError("a request to pull names no blocks")
        remote = self._wanted.get(request.id)
        if remote is None:
            return  # the real engine logs a warning, and the request waits for ever
        missing = len(request.table) - request.computed // self.shape.block_size
        if len(remote.blocks) < missing:
            raise EngineDeadError(f"{missing} blocks to fill, {len(remote.blocks)} to pull")
        first = remote.engine_id not in self.peers
        transfer_s = self.shape.profile.transfer_s(request.external_hit, first=first)
        self._commands.append(Pull(request.id, remote, remote.blocks[-missing:], transfer_s))

    def _compute(self, chunk: Chunk[Request]) -> None:
        request = chunk.request
        state = request.context
        if state is None:
            initial = initial_state(self.shape.model, request.lora)
            state = self.memory.state(request.table, chunk.start, initial)
        tokens = request.tokens[chunk.start : chunk.start + chunk.count]
        request.context = self.memory.write(request.table, chunk.start, tokens, state)

    def _sample(self, request: Request, now_s: float) -> Output:
        context = request.context or 0
        token = self.voice.next_token(context, request.sampling, request.generated)
        if request.first_token_s is None:
            request.first_token_s = now_s
            self._count_prompt(request)
        previous_s, request.last_token_s = request.last_token_s, now_s
        request.tokens.append(token)
        self.stats.generated_tokens += 1
        params = None
        if (status := self._ended(request, token)) is not None:
            params = self._finish(request, status, now_s)
        return Output(request, token, context, previous_s, params)

    def _ended(self, request: Request, token: int) -> Status | None:
        sampling = request.sampling
        if request.generated > sampling.min_tokens:
            if token == self.voice.eos and not sampling.ignore_eos:
                return Status.STOPPED
            if token in sampling.stop_token_ids:
                request.stop_reason = token
                return Status.STOPPED
        if request.generated >= sampling.max_tokens or len(request.tokens) >= self.shape.max_model_len:
            return Status.LENGTH
        return None

    def _count_prompt(self, request: Request) -> None:
        self.stats.prompt_tokens += request.prompt_length
        sources = self.stats.prompt_by_source
        sources["local_cache_hit"] += request.local_hit
        sources["external_kv_transfer"] += request.external_hit
        sources["local_compute"] += request.prompt_length - request.local_hit - request.external_hit

    def _finish(self, request: Request, status: Status, now_s: float = 0.0) -> dict[str, Any] | None:
        request.status = status
        self.scheduler.remove(request)
        self._forget(request)
        self.stats.finished[status.value] += 1
        blocks = tuple(request.table[: blocks_for(request.computed, self.shape.block_size)])
        if not request.hold or status is Status.FAILED:
            told = self.shape.bidirectional and status is not Status.FAILED
            self.cache.free(request)
            return self._transfer_params(request, blocks) if told else None
        self.holds.add(request, blocks, now_s)
        return self._transfer_params(request, blocks)

    def _forget(self, request: Request) -> None:
        self._requests.pop(request.id, None)
        self._wanted.pop(request.id, None)

    def _transfer_params(self, request: Request, blocks: tuple[int, ...]) -> dict[str, Any]:
        host, port = self.address
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(blocks)],
            "remote_engine_id": self.engine_id,
            "remote_request_id": request.id,
            "remote_host": host,
            "remote_port": port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": request.computed,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": request.local_hit,
        }
