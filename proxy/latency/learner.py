"""What the model learns is a function of what happened: no clock is read here, and no engine asked.

    prefill     of prefill legs that were served, at their ends, and of legs that do both, at their first
                tokens; by what their engines counted where they told it
    transfers   of legs that fetched a prompt, at their first tokens: what is left without the step
    steps       of streams that were served, at their ends: the time between two tokens, on average, without
                the prompts that were computed meanwhile

Legs that failed or were left may have been worked on, nobody knows how long: times that overlap them teach
nothing, nor do those of instances where others' prompts are computed. Answers that come whole show neither a
first token nor a step; from their sending to their end they count among what is generated beside.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from proxy.happenings import Checked, Happening, InstanceRemoved, LegBegan, LegEnded, LegSent
from proxy.latency.fits import PoolName
from proxy.latency.model import LatencyModel
from proxy.latency.service_times import Leg
from proxy.latency.streams import Streams
from proxy.phases import Phase

SERVED = "served"
"""The outcome of a leg that did what it was sent for."""

UNTOUCHED = frozenset({"connect", "full", "not_here", "refused"})
"""The outcomes of legs on which no engine worked, if they brought no first token."""

MIN_TOKENS = 8
"""A stream of fewer shows its engine's step too badly: its first and last tokens are off by jitter."""

MIN_SHARE = 0.2
"""Of a stream's time, what is left to decode at least. If less is, it was computing that took the time, and
what that took is predicted too badly to be taken off. Of the time to a first token, what the transfer took at
least."""


TRANSFER_EVERY_S = 0.05
"""Of the transfers to an instance one is learned in this time."""


class Gauges(Protocol):
    """What an engine told, as `fleet.gauges.Gauges` has it."""

    @property
    def at(self) -> float:
        """When, in seconds of the legs' clock."""
        ...

    @property
    def running(self) -> int:
        """Requests in its batch."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        ...

    @property
    def own(self) -> int:
        """How many of both are of this process, at most."""
        ...

    @property
    def requests(self) -> int:
        """All that run or wait."""
        ...

    @property
    def foreign(self) -> int:
        """How many of these at least are not ours."""
        ...


class LatencyLearner:
    """Feeds a model; a consumer of happenings."""

    hears = (LegBegan, LegSent, LegEnded, Checked, InstanceRemoved)

    def __init__(self, model: LatencyModel, pool_of: Callable[[str], PoolName | None]) -> None:
        """`pool_of`: the role and the model of an instance; None if it is not there."""
        self._model = model
        self._pool_of = pool_of
        self._there: set[str] = set()
        """Who has joined the model."""
        self._streams: dict[str, dict[int, Streams]] = {}
        self._waiting: dict[str, int] = {}
        """How many requests waited there when its gauges were read last."""

    def hear(self, happening: Happening) -> None:
        """Take a happening."""
        match happening:
            case LegBegan():
                self._leg_began(happening)
            case LegSent():
                self._leg_sent(happening)
            case LegEnded():
                self._leg_ended(happening)
            case Checked(instance=instance):
                self.joined(instance)
            case InstanceRemoved(instance=instance):
                self.forget(instance)
            case _:
                pass

    def joined(self, instance: str) -> bool:
        """An instance is there: it is predicted as its pool is. Returns whether it is."""
        name = self._pool_of(instance)
        if name is None:
            return False
        self._model.join(instance, name.role, name.model)
        self._there.add(instance)
        return True

    def _is_there(self, instance: str) -> bool:
        return instance in self._there or self.joined(instance)

    def restarted(self, instance: str) -> None:
        """Its process is another."""
        self._streams.pop(instance, None)
        self._waiting.pop(instance, None)
        self._model.restarted(instance)

    def forget(self, instance: str) -> None:
        """It was removed."""
        self._there.discard(instance)
        self._streams.pop(instance, None)
        self._waiting.pop(instance, None)
        self._model.forget(instance)

    def scraped(self, instance: str, gauges: Gauges) -> None:
        """An engine has told what runs there."""
        if not self._is_there(instance):
            return
        self._waiting[instance] = gauges.waiting
        ranks = self._streams.get(instance, {})
        for rank in ranks or (0,):
            self._model.gauges(instance, gauges.at, requests=gauges.requests, own=gauges.own, rank=rank)
        foreign = min(gauges.foreign, gauges.running)
        for streams in ranks.values():
            streams.foreign(gauges.at, foreign // len(ranks), self._step_ms(instance, streams))

    # -- legs ---------------------------------------------------------------------------------------------

    def _streams_of(self, instance: str, rank: int) -> Streams:
        ranks = self._streams.setdefault(instance, {})
        found = ranks.get(rank)
        if found is None:
            found = ranks[rank] = Streams()
        return found

    def _step_ms(self, instance: str, streams: Streams) -> float:
        return self._model.step_ms(instance, streams.sequences, streams.context_tokens)

    def _leg_began(self, leg: LegBegan) -> None:
        if not self._is_there(leg.instance):
            return
        instance, rank = leg.instance, leg.rank
        streams = self._streams_of(instance, rank)
        step_ms = streams.step_ms = self._step_ms(instance, streams)
        streams.passes(leg.at, step_ms)
        if leg.pulled_from is None:
            prompt = Leg(leg.began_at, leg.at, leg.uncached, leg.prompt_tokens)
            self._prefilled(instance, rank, prompt, streams)
        else:
            self._fetched(leg, leg.pulled_from, streams)
        streams.began(leg.at, leg.prompt_tokens, step_ms, leg.sequences)

    def _leg_sent(self, leg: LegSent) -> None:
        if not self._is_there(leg.instance):
            return
        streams = self._streams_of(leg.instance, leg.rank)
        step_ms = streams.step_ms = self._step_ms(leg.instance, streams)
        streams.began(leg.at, leg.prompt_tokens, step_ms, leg.sequences)

    def _fetched(self, leg: LegBegan, pulled_from: str, streams: Streams) -> None:
        """A leg has fetched its prompt: learn how long that took, where it can be told."""
        if leg.in_turn and leg.uncached is not None and leg.at >= streams.transfers_at:
            ms = (leg.at - leg.began_at) * 1000
            if streams.computed_until <= leg.began_at and not self._waiting.get(leg.instance):
                streams.transfers_at = leg.at + TRANSFER_EVERY_S
                taken_ms = max(ms - streams.step_ms, MIN_SHARE * ms)
                self._model.transferred(pulled_from, leg.instance, leg.uncached, taken_ms)
        self._model.spoke(pulled_from, leg.instance)

    def _prefilled(self, instance: str, rank: int, leg: Leg, streams: Streams) -> None:
        model = self._model
        if not streams.quiet_since(leg.began_at):
            beside = streams.between(leg.began_at, leg.ended_at)
            step_ms = model.step_ms(instance, beside.sequences, beside.context_tokens)
            leg = msgspec.structs.replace(leg, beside_ms=min(beside.sequences, 1.0) * step_ms)
        model.leg_ended(instance, leg, rank=rank)
        if leg.served and leg.uncached_tokens is not None and streams.is_used:
            ms = model.prefill_ms(instance, leg.uncached_tokens, leg.prompt_tokens)
            streams.computed(leg.began_at, leg.ended_at, ms)

    def _leg_ended(self, leg: LegEnded) -> None:
        if leg.whole:
            self._whole_ended(leg)
        untouched = leg.first_token_at is None and leg.outcome in UNTOUCHED
        if untouched or not self._is_there(leg.instance):
            return
        instance, rank = leg.instance, leg.rank
        if leg.phase is Phase.PREFILL:
            self._prefilled(instance, rank, _prefill(leg), self._streams_of(instance, rank))
        elif leg.first_token_at is not None:
            self._stream_ended(leg, leg.first_token_at)
        elif leg.pulled_from is None or leg.outcome != SERVED:
            self._model.unknown_work(instance, leg.began_at, leg.ended_at, rank=rank)

    def _whole_ended(self, leg: LegEnded) -> None:
        streams = self._streams.get(leg.instance, {}).get(leg.rank)
        if streams is not None and streams.has(leg.began_at):
            prompt_tokens = leg.prompt_tokens or 0
            streams.ended(leg.ended_at, prompt_tokens, leg.began_at, streams.step_ms, leg.sequences)

    def _stream_ended(self, leg: LegEnded, first_token_at: float) -> None:
        streams = self._streams_of(leg.instance, leg.rank)
        if not streams.has(first_token_at):
            return  # of a process that was there before
        step_ms = streams.step_ms
        at, ms = leg.ended_at, (leg.ended_at - first_token_at) * 1000
        streams.passes(at, step_ms)
        generated = leg.generated
        if generated is not None and generated >= MIN_TOKENS and leg.outcome == SERVED:
            beside = streams.between(first_token_at, at)
            decoding_ms = ms - beside.prefill_ms
            if decoding_ms >= MIN_SHARE * ms:
                mean_ms = decoding_ms / (generated - 1)
                self._model.stepped(leg.instance, beside.sequences, beside.context_tokens, mean_ms)
        streams.ended(at, leg.prompt_tokens or 0, first_token_at, step_ms, leg.sequences)


def _prefill(leg: LegEnded) -> Leg:
    prompt, reported = leg.prompt_tokens, leg.reported
    uncached = leg.uncached if prompt is None or reported is None else prompt - reported
    return Leg(
        began_at=leg.began_at,
        ended_at=leg.ended_at,
        uncached_tokens=uncached,
        prompt_tokens=prompt or 0,
        served=leg.outcome == SERVED and prompt is not None,
        first_token_ms=leg.first_token_ms,
    )
