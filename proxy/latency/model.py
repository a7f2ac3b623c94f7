"""Invariant: every instance has a prediction at all times, in milliseconds, learned from what it did and not
from what was predicted.

    prefill    factor * (a*steps + b*u + c*u*(2n - u)/2) u uncached of n tokens, in steps of `chunk_tokens`
    transfer   factor * (fixed + per_token*tokens)       of a pair; once more the handshake, if it never spoke
    step       factor * (s0 + s1*sequences + s2*context tokens)

Instances of one role and model share the coefficients, and each has its factor. An instance that did not join
is predicted by the profile, and nothing is learned of it.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from proxy.latency.fits import Fits, Place, PoolName
from proxy.latency.pool import PoolState
from proxy.latency.profiles import Profile
from proxy.latency.service_times import Leg, ServiceTimes

MAX_INSTANCES = 4096
MAX_RANKS = 1024
"""Of an instance: as many as kvproxy knows of engines, and nobody has."""

MAX_PAIRS = 8192
"""Pairs with factors of their own; the others are as most are."""

MAX_HANDSHAKES = 15
"""Of the last so many the median counts: one that took 6 s under load shall not."""

OVERHEAD_SURE = 100.0
"""The overhead may be off by a twentieth of a usual prefill: it cannot be told from `a` while all legs find
their engines idle.
"""

MIN_STEP_MS, MAX_STEP_MS = 0.5, 10.0
STEP_SHARE = 0.3
"""Prefills whose ends are closer than this share of a step's fixed cost were in one step. Their answers do
not leave at the same instant."""

MIN_SHARE = 0.2
"""Of a time that an engine spent on prefill and decode, what is left to prefill at least."""

WAITED_STEPS = 0.5
"""Decode steps that a prompt waits on average for the end of the one under way, where none is computed."""

CUT_WEIGHT = 0.1
"""What a time teaches that was cut where legs may have shared a step: its tokens are off by an eighth."""

SHARED_EVERY, SHARED_WEIGHT = 8, 0.1
"""Of times beside requests of others, in which they may have had prompts computed, one of so many is learned,
with so much weight. Where others are always there these are all that there is; elsewhere they are few."""

MIN_PREDICTED_MS = 1e-3
"""No step takes less, whatever was fitted: what was generated in a time is counted in steps."""

MAX_LINE_UPS = 32
"""So many lists of instances are kept with their places."""

STATE_VERSION = 1

Floats = npt.NDArray[np.float64]
Pair = tuple[str, str]
K = TypeVar("K", bound=Hashable)


class KindState(msgspec.Struct, frozen=True):
    """One kind of work, in plain values."""

    pools: list[tuple[PoolName, PoolState]]
    factors: list[tuple[str, str, float]]
    """Of an instance, or of a pair: the second name is empty for an instance."""


class ModelState(msgspec.Struct, frozen=True):
    """What a latency model has learned, in plain values."""

    version: Annotated[int, msgspec.Meta(ge=STATE_VERSION, le=STATE_VERSION)]
    prefill: KindState
    step: KindState
    transfer: KindState
    handshakes: list[Annotated[float, msgspec.Meta(ge=0)]]
    met: list[Pair]


class Fitted(msgspec.Struct, frozen=True):
    """How one kind of work of one pool is predicted, and how well."""

    kind: str
    """`prefill`, `step` or `transfer`."""
    role: str
    model: str
    coefficients: dict[str, float]
    """Of an instance as most of the pool are; ms, and ms a token."""
    observations: int
    error_p50: float | None
    """|predicted - observed| / observed that half of the last predictions did not exceed; None if none was
    observed."""
    error_p90: float | None
    factors: dict[str, float]
    """How many times as long as most each instance takes; of a transfer, each pair that was observed."""


class LatencyModel:
    """Predicts what instances take, and learns it."""

    def __init__(self, profile: Profile) -> None:
        """`profile`: what is believed before anything was observed."""
        self._profile = profile
        self._chunk_tokens = profile.chunk_tokens
        self._prefill: Fits[str] = Fits(
            (profile.a, profile.b, profile.c, profile.overhead),
            (1.0, 2048.0, 2048.0**2 / 2, 1.0),
            MAX_INSTANCES,
            (1.0, 1.0, 1.0, OVERHEAD_SURE),
        )
        self._step: Fits[str] = Fits(
            (profile.s0, profile.s1, profile.s2), (1.0, 16.0, 16 * 2048.0), MAX_INSTANCES
        )
        self._transfer: Fits[Pair] = Fits(
            (profile.transfer, profile.transfer_per_token), (1.0, 2048.0), MAX_PAIRS
        )
        self._pools: dict[str, PoolName] = {}
        self._services: dict[str, dict[int, ServiceTimes]] = {}
        """Of each instance by rank: ranks have queues of their own."""
        self._met: dict[str, set[str]] = {}
        self._handshakes: deque[float] = deque(maxlen=MAX_HANDSHAKES)
        self._shared = 0
        """Times beside requests of others that came."""
        self._lined_up = (_LinedUp(), _LinedUp())
        """For prefill, and for steps."""

    # -- who there is -------------------------------------------------------------------------------------

    def join(self, instance: str, role: str, model: str) -> None:
        """An instance is there. Joining again with another role or model begins anew."""
        name = PoolName(role, model)
        if self._pools.get(instance) == name:
            return
        if instance in self._pools:
            self.forget(instance)
        self._pools[instance] = name
        self._services[instance] = {}
        self._prefill.join(instance, name)
        self._step.join(instance, name)
        for pair in [pair for pair in self._transfer.remembered if instance in pair]:
            if pair[0] in self._pools and pair[1] in self._pools:
                self._transfer.join(pair, self._pools[pair[1]])

    def forget(self, instance: str) -> None:
        """An instance was removed. What ends there later teaches nothing."""
        if self._pools.pop(instance, None) is None:
            return
        del self._services[instance]
        self._prefill.forget(instance)
        self._step.forget(instance)
        for pair in [pair for pair in self._transfer.places if instance in pair]:
            self._transfer.forget(pair)
        self.restarted(instance)

    def restarted(self, instance: str) -> None:
        """Its process is another: it has to shake hands again. It is as fast as it was."""
        self._met.pop(instance, None)
        for met in self._met.values():
            met.discard(instance)

    # -- predictions --------------------------------------------------------------------------------------

    def prefill_ms(self, instance: str, uncached_tokens: float, prompt_tokens: float) -> float:
        """To compute the uncached tokens of a prompt, without waiting and without `overhead_ms`."""
        place = self._prefill.places.get(instance, self._prefill.stranger)
        a, b, c, _ = place.pool.formula
        each = b + c * (prompt_tokens - 0.5 * uncached_tokens)
        return place.member.factor * (a * self.steps(uncached_tokens) + uncached_tokens * each)

    def steps(self, tokens: float) -> int:
        """How many steps compute so many tokens: the fixed cost is paid in each."""
        return 1 if tokens <= self._chunk_tokens else math.ceil(tokens / self._chunk_tokens)

    def beside_ms(self, tokens: float, step_ms: float, wait_ms: float) -> float:
        """What a prompt takes longer where answers are generated, a step for which takes `step_ms`: one for
        each of its own steps, and the rest of the one under way where no prompts are computed before it.
        """
        return (self.steps(tokens) + (0.0 if wait_ms > 0 else WAITED_STEPS)) * step_ms

    def prefill_ms_of(
        self, instances: Sequence[str], uncached_tokens: Sequence[float], prompt_tokens: float
    ) -> list[float]:
        """As `prefill_ms`, of many instances at once: for each its uncached tokens."""
        line = self._line(self._prefill, instances)
        lengths = set(uncached_tokens)  # few: of most candidates nothing is cached
        works = {pool: _works_ms(pool.formula, lengths, prompt_tokens, self.steps) for pool in line.all_pools}
        if line.pool is not None:
            work_ms = works[line.pool]
            both = zip(line.members, uncached_tokens, strict=True)
            return [member.factor * work_ms[tokens] for member, tokens in both]
        each = zip(line.members, line.pools, uncached_tokens, strict=True)
        return [member.factor * works[pool][tokens] for member, pool, tokens in each]

    def _line(self, fits: Fits[str], instances: Sequence[str]) -> "_Line":
        """Some instances, kept until one joins or goes."""
        names = tuple(instances)
        lined_up = self._lined_up[fits is self._step]
        if lined_up.at != fits.changes:
            lined_up.of.clear()
            lined_up.at = fits.changes
        found = lined_up.of.get(names)
        if found is None:
            if len(lined_up.of) >= MAX_LINE_UPS:
                lined_up.of.clear()
            found = lined_up.of[names] = _Line([fits.places.get(name, fits.stranger) for name in names])
        return found

    def overhead_ms(self, instance: str) -> float:
        """What a leg takes beside the engine's work: HTTP, reading the body, tokenizing."""
        place = self._prefill.places.get(instance, self._prefill.stranger)
        return place.member.factor * place.pool.formula[3]

    def overhead_ms_of(self, instances: Sequence[str]) -> list[float]:
        """As `overhead_ms`, of many instances at once."""
        line = self._line(self._prefill, instances)
        if line.pool is not None:
            overhead = line.pool.formula[3]
            return [member.factor * overhead for member in line.members]
        both = zip(line.members, line.pools, strict=True)
        return [member.factor * pool.formula[3] for member, pool in both]

    def transfer_ms(self, prefill: str, decode: str, tokens: float) -> float:
        """To pull the KV of that many tokens, hands shaken."""
        place = self._transfer.places.get((prefill, decode))
        if place is not None:
            fixed, per_token = place.pool.formula
            return place.member.factor * (fixed + per_token * tokens)
        fixed, per_token = self._transfer.usual(self._pools.get(decode))
        return fixed + per_token * tokens

    def handshake_ms(self, prefill: str, decode: str) -> float:
        """What the next transfer of this pair takes more; 0 once they have spoken."""
        if decode in self._met.get(prefill, ()):
            return 0.0
        if not self._handshakes:
            return self._profile.handshake
        return statistics.median([self._profile.handshake, *self._handshakes])

    def fetch_ms_of(self, prefill: str, decodes: Sequence[str], tokens: Sequence[float]) -> list[float]:
        """`handshake_ms` and `transfer_ms` together, to many instances at once: for each its tokens."""
        places, pools, met = self._transfer.places, self._pools, self._met.get(prefill, ())
        handshake_ms: float | None = None
        name: PoolName | None = None
        usual = self._transfer.prior
        found: list[float] = []
        for decode, count in zip(decodes, tokens, strict=True):
            place = places.get((prefill, decode))
            if place is not None:
                fixed, per_token = place.pool.formula
                ms = place.member.factor * (fixed + per_token * count)
            else:
                its = pools.get(decode)
                if its is not name and its != name:
                    name, usual = its, self._transfer.usual(its)
                fixed, per_token = usual
                ms = fixed + per_token * count
            if decode not in met:
                if handshake_ms is None:
                    handshake_ms = self.handshake_ms(prefill, decode)
                ms += handshake_ms
            found.append(ms)
        return found

    def step_ms(self, instance: str, sequences: float, context_tokens: float) -> float:
        """A decode step for so many sequences, with so many tokens of context together."""
        place = self._step.places.get(instance, self._step.stranger)
        s0, s1, s2 = place.pool.formula
        return max(place.member.factor * (s0 + s1 * sequences + s2 * context_tokens), MIN_PREDICTED_MS)

    def step_ms_of(
        self, instances: Sequence[str], sequences: Sequence[float], context_tokens: Sequence[float]
    ) -> list[float]:
        """As `step_ms`, of many instances at once."""
        line = self._line(self._step, instances)
        if line.pool is not None:
            s0, s1, s2 = line.pool.formula
            all_of_them = zip(line.members, sequences, context_tokens, strict=True)
            found = [member.factor * (s0 + s1 * count + s2 * tokens) for member, count, tokens in all_of_them]
        else:
            found = []
            for member, pool, count, tokens in zip(
                line.members, line.pools, sequences, context_tokens, strict=True
            ):
                s0, s1, s2 = pool.formula
                found.append(member.factor * (s0 + s1 * count + s2 * tokens))
        if min(found, default=MIN_PREDICTED_MS) < MIN_PREDICTED_MS:
            return [max(each, MIN_PREDICTED_MS) for each in found]
        return found

    def longer_ms_of(self, instances: Sequence[str], context_tokens: float) -> list[float]:
        """By how much a step of each becomes longer with one sequence more of such a context."""
        line = self._line(self._step, instances)
        longer_ms = {pool: pool.formula[1] + pool.formula[2] * context_tokens for pool in line.all_pools}
        if line.pool is not None:
            each_ms = longer_ms[line.pool]
            return [member.factor * each_ms for member in line.members]
        both = zip(line.members, line.pools, strict=True)
        return [member.factor * longer_ms[pool] for member, pool in both]

    def price_ms(
        self, instance: str, sequences: float, context_tokens: float, new_context_tokens: float
    ) -> float:
        """How much longer each step becomes, for every sequence there, with one more of this context.

        Times `sequences`, it is what all of them lose in a step.
        """
        with_it = self.step_ms(instance, sequences + 1, context_tokens + new_context_tokens)
        return with_it - self.step_ms(instance, sequences, context_tokens)

    # -- learning -----------------------------------------------------------------------------------------

    def prefilled(self, instance: str, uncached_tokens: int, prompt_tokens: int, ms: float) -> bool:
        """An engine took so long for a prompt alone, waiting and overhead excluded; whether it was believed.

        For the time of a leg, which has both in it, see `leg_ended`.
        """
        attended = uncached_tokens * (2 * prompt_tokens - uncached_tokens) / 2
        return self._prefill.learn(
            instance, (self.steps(uncached_tokens), uncached_tokens, attended, 0.0), ms
        )

    def leg_ended(
        self,
        instance: str,
        leg: Leg,
        *,
        rank: int = 0,
        others: int | None = None,
    ) -> None:
        """A leg that prefilled has ended, or failed: learn what can be learned of it.

        Legs of a rank are told in the order of their ends. `others`: how many run there now, if known.
        """
        place = self._prefill.places.get(instance)
        if place is None:
            return
        a, _, _, overhead = place.coefficients
        step_ms = min(max(STEP_SHARE * a, MIN_STEP_MS), MAX_STEP_MS)
        told = self._service(instance, rank).ended(leg, step_ms=step_ms, overhead_ms=overhead, others=others)
        for served in told:
            ms, steps = served.ms, self.steps(served.uncached_tokens)
            if served.beside_ms:
                waited = WAITED_STEPS if served.idle else 0.0
                ms = max(ms - (steps + waited) * served.beside_ms, MIN_SHARE * ms)
            features = (steps, served.uncached_tokens, served.attended, float(served.idle))
            weight = 1.0 if served.whole else CUT_WEIGHT
            if served.shared:
                self._shared += 1
                if self._shared % SHARED_EVERY:
                    continue
                weight = min(weight, SHARED_WEIGHT)
            self._prefill.learn(instance, features, ms, weight)

    def unknown_work(self, instance: str, began_at: float, until: float, *, rank: int = 0) -> None:
        """The engine may have worked between these times on what is told in no leg."""
        if instance in self._pools:
            self._service(instance, rank).unknown(began_at, until)

    def gauges(self, instance: str, at: float, *, requests: int, own: int, rank: int = 0) -> None:
        """What an engine told of itself at a time: `requests` run or wait there, `own` of them are ours.

        `own` MUST count every request that was there at any moment of the question: what is more than that is
        of other routers, and times with it are not learned from.
        """
        if instance in self._pools:
            self._service(instance, rank).gauges(at, requests=requests, own=own)

    def _service(self, instance: str, rank: int) -> ServiceTimes:
        ranks = self._services[instance]
        if rank not in ranks:
            if len(ranks) >= MAX_RANKS:
                ranks.clear()
            ranks[rank] = ServiceTimes(self._chunk_tokens)
        return ranks[rank]

    def transferred(self, prefill: str, decode: str, tokens: int, ms: float) -> bool:
        """KV was pulled in so long, waiting and the first decode step excluded; whether it was believed.

        The first time of a pair teaches how long hands are shaken.
        """
        name = self._pools.get(decode)
        if name is None or prefill not in self._pools or not 0 < ms < float("inf"):
            return False
        met = self._met.setdefault(prefill, set())
        if decode not in met:
            met.add(decode)
            self._handshakes.append(max(ms - self.transfer_ms(prefill, decode, tokens), 0.0))
            return True
        self._transfer.join((prefill, decode), name)
        return self._transfer.learn((prefill, decode), (1.0, tokens), ms)

    def spoke(self, prefill: str, decode: str) -> None:
        """A pair has handed blocks over, in a time that teaches nothing: their hands are shaken."""
        if prefill in self._pools and decode in self._pools:
            self._met.setdefault(prefill, set()).add(decode)

    def stepped(self, instance: str, sequences: float, context_tokens: float, ms: float) -> bool:
        """A decode step took so long, or some did on average, with so much in it; whether it was believed."""
        return self._step.learn(instance, (1.0, sequences, context_tokens), ms)

    # -- what it knows ------------------------------------------------------------------------------------

    def fitted(self) -> list[Fitted]:
        """All pools that were observed."""
        return [
            *_fitted("prefill", self._prefill, ("a", "b", "c", "overhead"), str),
            *_fitted("step", self._step, ("s0", "s1", "s2"), str),
            *_fitted("transfer", self._transfer, ("fixed", "per_token"), " -> ".join),
        ]

    def state(self) -> dict[str, Any]:
        """What it has learned, in plain values, for `restore` of a later process."""
        state = ModelState(
            version=STATE_VERSION,
            prefill=_kind_state(self._prefill, lambda instance: (instance, "")),
            step=_kind_state(self._step, lambda instance: (instance, "")),
            transfer=_kind_state(self._transfer, lambda pair: pair),
            handshakes=[*self._handshakes],
            met=[(prefill, decode) for prefill, met in self._met.items() for decode in sorted(met)][
                -MAX_PAIRS:
            ],
        )
        plain: dict[str, Any] = msgspec.to_builtins(state)
        return plain

    def restore(self, state: object) -> None:
        """Take over what `state` gave, before anybody joined.

        Raises ValueError if it is no such state; then nothing is taken over. What was learned of an instance
        is used when it joins.
        """
        try:
            read = msgspec.convert(state, ModelState)
        except msgspec.ValidationError as error:
            raise ValueError(f"this is not what a latency model has learned: {error}") from None
        fresh = LatencyModel(self._profile)
        for fits, kind in ((fresh._prefill, read.prefill), (fresh._step, read.step)):
            fits.restore(kind.pools, [(instance, factor) for instance, _, factor in kind.factors])
        fresh._transfer.restore(
            read.transfer.pools,
            [((prefill, decode), factor) for prefill, decode, factor in read.transfer.factors],
        )
        self._prefill, self._step, self._transfer = fresh._prefill, fresh._step, fresh._transfer
        self._handshakes.extend(read.handshakes)
        for prefill, decode in read.met[-MAX_PAIRS:]:
            self._met.setdefault(prefill, set()).add(decode)
        self._lined_up = (_LinedUp(), _LinedUp())


class _LinedUp:
    """The lists of instances that were asked about together."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, ...], _Line] = {}
        self.at = -1


class _Line:
    """Instances that are asked about together: each with its factor and its pool's formula."""

    __slots__ = ("all_pools", "members", "pool", "pools")

    def __init__(self, places: Sequence[Place[str]]) -> None:
        self.members = [place.member for place in places]
        self.pools = [place.pool for place in places]
        self.all_pools = set(self.pools)
        self.pool = self.pools[0] if len(self.all_pools) == 1 else None
        """That of all of them, if it is one."""


def _works_ms(
    formula: Sequence[float], lengths: Iterable[float], prompt_tokens: float, steps: Callable[[float], int]
) -> dict[float, float]:
    """To compute so many tokens of a prompt, by their number, as most of a pool do."""
    a, b, c, _ = formula
    return {u: a * steps(u) + u * (b + c * (prompt_tokens - 0.5 * u)) for u in lengths}


def _kind_state(fits: Fits[K], names: Callable[[K], Pair]) -> KindState:
    pools, factors = fits.state()
    return KindState(pools=pools, factors=[(*names(key), factor) for key, factor in factors])


def _fitted(kind: str, fits: Fits[K], names: Sequence[str], called: Callable[[K], str]) -> list[Fitted]:
    return [
        Fitted(
            kind=kind,
            role=name.role,
            model=name.model,
            coefficients=dict(zip(names, pool.coefficients, strict=True)),
            observations=pool.observations,
            error_p50=pool.errors.quantile(0.5),
            error_p90=pool.errors.quantile(0.9),
            factors={called(key): factor for key, factor in pool.factors().items()},
        )
        for name, pool in fits.pools()
        if pool.observations
    ]
