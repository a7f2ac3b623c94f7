"""What was seen becomes a profile by the fit that kvproxy learns by, and the probes that were held out tell
its error.
"""

import math
import random
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from proxy.fitting.seen import HandedOver, Prompted, Seen
from proxy.latency.model import Fitted, LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN, EngineSize, ProfileFile
from proxy.latency.service_times import Leg
from proxy.phases import Role

PASSES = 8
"""Each begins with what the one before has found: a fit believes what is far from its prediction only by and
by. But each begins with the usual overhead: probes find engines idle, and so tell its sum with `a`."""
UPDATES = 48
"""In each pass probes of a kind are heard of so often, all of them together."""
MODEL = "probed"
"""All engines serve one model."""

T = TypeVar("T")


class Error(msgspec.Struct, frozen=True):
    """|predicted - observed| / observed of probes that were held out."""

    kind: str
    probes: int
    p50: float
    p90: float


class Outcome(msgspec.Struct, frozen=True):
    """A profile, and how far it may be believed."""

    profile: ProfileFile
    errors: Sequence[Error]
    factors: Mapping[str, float]
    """How many times as long as most an engine takes for prompts or steps, where that is told apart."""
    unknown: Sequence[str]
    """Which of its figures were not measured, and are believed of any engine."""


def outcome_of(
    seen: Seen, roles: Mapping[str, Role], *, source: str, chunk_tokens: int, engine: EngineSize
) -> Outcome:
    """The profile of what was seen. `roles`: of each engine; `source`: the sentence for the profile."""
    profile = ProfileFile(
        **msgspec.structs.asdict(PROFILES[UNKNOWN]) | {"chunk_tokens": chunk_tokens, "source": source},
        engine=engine,
    )
    for _ in range(PASSES):
        model, profile = _pass(seen, roles, profile)
    found = model.fitted()
    best = _best(found)
    return Outcome(
        profile=profile,
        errors=_errors(model, seen),
        factors={
            instance: factor
            for kind in ("prefill", "step")
            if kind in best
            for instance, factor in best[kind].factors.items()
            if abs(factor - 1) > TOLD_APART
        },
        unknown=[kind for kind in ("prefill", "step", "transfer") if kind not in best],
    )


def _pass(seen: Seen, roles: Mapping[str, Role], before: ProfileFile) -> tuple[LatencyModel, ProfileFile]:
    """A model that has heard of all probes, beginning with a profile, and the profile that it makes of it."""
    overhead = PROFILES[UNKNOWN].overhead
    prior = msgspec.structs.replace(
        before, overhead=overhead, a=max(before.a + before.overhead - overhead, LEAST)
    )
    model = LatencyModel(prior)
    for instance, role in roles.items():
        model.join(instance, role.value, MODEL)
    _hear_prompts(model, _again(probe for probe in seen.prompted if not probe.held_out))
    for each in _again(probe for probe in seen.stepped if not probe.held_out):
        model.stepped(each.instance, each.sequences, each.context_tokens, each.ms)
    handed = [probe for probe in seen.handed if not probe.held_out]
    first = {(probe.prefill, probe.decode): probe for probe in reversed(handed)}
    for probe in first.values():  # their handshakes are what is left of them in the end
        model.transferred(probe.prefill, probe.decode, probe.tokens, _transfer_ms(model, probe))
    for probe in _again(probe for probe in handed if probe not in first.values()):
        model.transferred(probe.prefill, probe.decode, probe.tokens, _transfer_ms(model, probe))
    best = _best(model.fitted())
    a, b, c, overhead = _values(best.get("prefill"), (prior.a, prior.b, prior.c, prior.overhead))
    s0, s1, s2 = _values(best.get("step"), (prior.s0, prior.s1, prior.s2))
    fixed, per_token = _values(best.get("transfer"), (prior.transfer, prior.transfer_per_token))
    return model, msgspec.structs.replace(
        prior, a=a, b=max(b, LEAST), c=c, overhead=overhead, transfer=fixed, transfer_per_token=per_token,
        handshake=_handshake(model, first.values()), s0=max(s0, LEAST), s1=s1, s2=s2,
    )  # fmt: skip


LEAST = 1e-9
"""A profile needs figures above 0."""
TOLD_APART = 0.03
"""A factor nearer to 1 is chance."""


def _again(probes: Iterable[T]) -> list[T]:
    """All of them again and again, each time in an order in which no size comes before another."""
    found, dice = list(probes), random.Random(0)  # noqa: S311  # no secret
    told: list[T] = []
    while found and len(told) < UPDATES:
        told += dice.sample(found, len(found))
    return told


def _hear_prompts(model: LatencyModel, prompts: Sequence[Prompted]) -> None:
    """Each engine computed nothing else: each prompt is told as if it had come long after the one before."""
    at: dict[str, float] = {}
    for probe in prompts:
        began_at = at.get(probe.instance, 0.0) + 3600.0
        ended_at = began_at + probe.ended_at - probe.began_at
        model.leg_ended(probe.instance, Leg(began_at, ended_at, probe.uncached, probe.prompt), others=0)
        at[probe.instance] = ended_at


def _transfer_ms(model: LatencyModel, probe: HandedOver) -> float:
    """Of a decode leg, what is left without HTTP and the step that generates."""
    return max(
        probe.ms - model.overhead_ms(probe.decode) - model.step_ms(probe.decode, 1, probe.tokens), LEAST
    )


def _handshake(model: LatencyModel, first: Collection[HandedOver]) -> float:
    """What first transfers took more; 0 if the pairs had met before."""
    extra = [
        _transfer_ms(model, probe) - model.transfer_ms(probe.prefill, probe.decode, probe.tokens)
        for probe in first
    ]
    return max(statistics.median(extra), 0.0) if extra else 0.0


def _best(fitted: Sequence[Fitted]) -> dict[str, Fitted]:
    """Of each kind of work the pool that was observed most."""
    return {each.kind: each for each in sorted(fitted, key=lambda each: each.observations)}


def _values(fitted: Fitted | None, prior: tuple[float, ...]) -> tuple[float, ...]:
    return prior if fitted is None else tuple(fitted.coefficients.values())


def _errors(model: LatencyModel, seen: Seen) -> list[Error]:
    found = {
        "prefill": [
            (
                model.prefill_ms(probe.instance, probe.uncached, probe.prompt)
                + model.overhead_ms(probe.instance),
                1000 * (probe.ended_at - probe.began_at),
            )
            for probe in seen.prompted
            if probe.held_out
        ],
        "step": [
            (model.step_ms(probe.instance, probe.sequences, probe.context_tokens), probe.ms)
            for probe in seen.stepped
            if probe.held_out
        ],
        "transfer": [
            (
                model.overhead_ms(probe.decode)
                + model.transfer_ms(probe.prefill, probe.decode, probe.tokens)
                + model.step_ms(probe.decode, 1, probe.tokens),
                probe.ms,
            )
            for probe in seen.handed
            if probe.held_out
        ],
    }
    return [_error(kind, pairs) for kind, pairs in found.items() if pairs]


def _error(kind: str, pairs: Sequence[tuple[float, float]]) -> Error:
    errors = sorted(abs(predicted - observed) / max(observed, LEAST) for predicted, observed in pairs)
    p50, p90 = (errors[math.ceil(share * len(errors)) - 1] for share in (0.5, 0.9))
    return Error(kind, len(errors), p50, p90)
