"""Whatever is asked of an engine, its events tell what it caches, and its blocks are all accounted for."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored
from proxy.simulation import EngineModel
from proxy.simulation.engine.kv_cache import blocks_for
from proxy.simulation.engine.request import Request
from tests.proxy.simulation.driving import carry, model, request

BLOCK = 2
prompts = st.lists(st.sampled_from([300, 301]), min_size=1, max_size=10)
salts = st.sampled_from([None, "s"])


class Heard:
    """What a subscriber knows of one engine: copies by hash."""

    def __init__(self, engine: EngineModel) -> None:
        self.engine = engine
        self.copies: Counter[bytes] = Counter()

    def listen(self) -> None:
        for event in self.engine.take_events():
            match event:
                case BlockStored():
                    assert len(event.token_ids) == event.block_size * len(event.block_hashes)
                    self.copies.update(bytes(h) for h in event.block_hashes if isinstance(h, bytes))
                case BlockRemoved():
                    for name in event.block_hashes:
                        assert isinstance(name, bytes)
                        assert self.copies[name] > 0
                        self.copies[name] -= 1
                case AllBlocksCleared():
                    self.copies.clear()

    def agrees(self) -> bool:
        pool = self.engine.cache.pool
        cached = Counter(name for block in range(1, pool.size) if (name := pool.hash_of(block)))
        return cached == +self.copies


class Traffic(RuleBasedStateMachine):
    """A prefill and a decode engine with very little memory, and clients that come and go."""

    @initialize(blocks=st.integers(8, 14))
    def begin(self, blocks: int) -> None:
        shape = {"block_size": BLOCK, "blocks": blocks, "max_batched_tokens": 7, "max_sequences": 3}
        self.p, self.d = model("p", lease_s=10.0, **shape), model("d", **shape)
        self.heard = [Heard(self.p), Heard(self.d)]
        self.requests: list[Request] = []
        self.params: list[tuple[list[int], dict[str, object]]] = []
        self.now_s = 0.0

    def engine(self, prefill: bool) -> EngineModel:
        return self.p if prefill else self.d

    def send(self, engine: EngineModel, prompt: list[int], **fields: object) -> None:
        leg = request(f"r{len(self.requests)}", prompt, **fields)  # type: ignore[arg-type]  # any of its fields
        self.requests.append(leg)
        engine.add(leg)

    @rule(prompt=prompts, prefill=st.booleans(), max_tokens=st.integers(1, 4), salt=salts)
    def plain(self, prompt: list[int], prefill: bool, max_tokens: int, salt: str | None) -> None:
        self.send(self.engine(prefill), prompt, max_tokens=max_tokens, cache_salt=salt)

    @rule(prompt=prompts)
    def prefill_leg(self, prompt: list[int]) -> None:
        self.send(self.p, prompt, hold=True)

    @rule(data=st.data(), max_tokens=st.integers(1, 4))
    def decode_leg(self, data: st.DataObject, max_tokens: int) -> None:
        if self.params:
            prompt, params = data.draw(st.sampled_from(self.params))  # spent ones, too
            self.send(self.d, prompt, max_tokens=max_tokens, pull=params)

    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        if self.requests:
            leg = data.draw(st.sampled_from(self.requests))
            self.p.abort(leg.id)
            self.d.abort(leg.id)

    @rule(prefill=st.booleans(), steps=st.integers(1, 6))
    def steps(self, prefill: bool, steps: int) -> None:
        engine = self.engine(prefill)
        for _ in range(steps):
            begun = engine.begin_step(self.now_s)
            if begun is None:
                break
            for output in engine.end_step(begun, self.now_s):
                if output.params is not None:
                    prompt = list(output.request.tokens[: output.request.prompt_length])
                    self.params.append((prompt, output.params))

    @rule()
    def transfers(self) -> None:
        carry(self.p, self.d, self.now_s)

    @rule(seconds=st.sampled_from([1.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.p.expire(self.now_s)

    @rule(prefill=st.booleans())
    def reset(self, prefill: bool) -> None:
        self.engine(prefill).reset_prefix_cache()

    @invariant()
    def events_tell_the_cache(self) -> None:
        for heard in self.heard:
            heard.listen()
            assert heard.agrees()

    @invariant()
    def a_table_holds_what_is_computed(self) -> None:
        for engine in (self.p, self.d):
            for leg in engine.scheduler:
                assert len(leg.table) >= blocks_for(leg.computed, BLOCK)
                assert leg.local_hit < len(leg.tokens)

    def teardown(self) -> None:
        """Everything ends, and every block comes back."""
        for _ in range(1000):
            for engine in (self.p, self.d):
                if (begun := engine.begin_step(self.now_s)) is not None:
                    engine.end_step(begun, self.now_s)
            carry(self.p, self.d, self.now_s)
            self.now_s += 1.0  # holds may fill a memory until their leases end
            self.p.expire(self.now_s)
            if not self.p.unfinished + self.d.unfinished + len(self.p.holds):
                break
        for engine in (self.p, self.d):
            assert engine.cache.pool.usage == 0.0
            assert engine.reset_prefix_cache()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
