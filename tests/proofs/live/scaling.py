"""Invariant: both worlds get the same engines and the same requests, whatever a token and a second stand for.

Prompts of 12 000 tokens and steps of 6 ms are more than a small machine can send and time beside its own
noise. So a token of this proof stands for several of the trace, and everything takes longer than the profile
says, arrivals included.
"""

import dataclasses
import math
from collections.abc import Sequence

import msgspec

from proxy.latency.profiles import PROFILES as BELIEVED
from proxy.latency.profiles import UNKNOWN, ProfileFile
from proxy.simulation.engine.latency import PROFILES, Profile
from proxy.simulation.engine.values import EngineShape
from proxy.simulation.replay.run import engine_of
from proxy.traces.workload import TraceRequest, Workload


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """What a token and a second of the proof stand for."""

    tokens: int = 8
    """Tokens of a prompt of the trace to one of the proof."""
    steps: int = 1
    """Tokens of an answer of the trace, and steps of an engine that generate them, to one of the proof."""
    time: float = 2.0
    """Seconds of the proof to one of the trace."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scaled:
    """A profile that is told a scale's tokens, in a scale's seconds. A step that generates a token of each
    request takes as long as the steps that it stands for.
    """

    profile: Profile
    scale: Scale

    def step_s(self, prefills: Sequence[tuple[int, int]], decodes: int, context: int, usage: float) -> float:
        """As `Profile`."""
        each = self.scale.tokens
        prompts = [(each * new, each * behind) for new, behind in prefills]
        seconds = self.profile.step_s(prompts, 0, 0, usage) if prompts else 0.0
        if decodes:
            seconds += self.scale.steps * self.profile.step_s((), decodes, each * context, usage)
        return self.scale.time * seconds

    def decode_s(self, steps: int, sequences: int, context: int, usage: float) -> float:
        """As `Profile`, the context that grows meanwhile included."""
        return math.fsum(
            self.step_s((), sequences, context + sequences * number, usage) for number in range(steps)
        )

    def transfer_s(self, tokens: int, *, first: bool) -> float:
        """As `Profile`."""
        return self.scale.time * self.profile.transfer_s(self.scale.tokens * tokens, first=first)


def scaled_shape(profile: str, scale: Scale, *, block_tokens: int, model: str) -> EngineShape:
    """The engine of the offline replay at a scale: as much memory and as large steps, in blocks as large as
    those of the trace (`block_tokens` of it), so that little is left to hash.
    """
    usual = engine_of(profile)
    size = block_tokens // scale.tokens
    memory = (usual.blocks - 1) * usual.block_size // scale.tokens
    return dataclasses.replace(
        usual,
        model=model,
        block_size=size,
        blocks=memory // size + 1,
        max_model_len=memory // size * size,
        max_batched_tokens=usual.max_batched_tokens // scale.tokens,
        profile=Scaled(PROFILES[profile], scale),
    )


def scaled_prior(scale: Scale) -> ProfileFile:
    """What is believed of an engine of which nothing is known, at a scale: as wrong as it is without one."""
    usual, tokens, steps, time = BELIEVED[UNKNOWN], scale.tokens, scale.steps, scale.time
    return ProfileFile(
        source=f"{usual.source}; {tokens} tokens for one",
        a=time * usual.a,
        b=time * tokens * usual.b,
        c=time * tokens**2 * usual.c,
        overhead=usual.overhead,
        chunk_tokens=usual.chunk_tokens // tokens,
        transfer=time * usual.transfer,
        transfer_per_token=time * tokens * usual.transfer_per_token,
        handshake=time * usual.handshake,
        s0=time * steps * usual.s0,
        s1=time * steps * usual.s1,
        s2=time * steps * tokens * usual.s2,
    )


def scaled_workload(workload: Workload, scale: Scale) -> Workload:
    """The requests at a scale; no answer is shorter than two tokens, so that each has a time between two.

    Raises ValueError for a trace whose blocks cannot be divided so.
    """
    requests = [_scaled(request, scale) for request in workload.requests]
    how = (
        f"one token for {scale.tokens} of prompts and {scale.steps} of answers, {scale.time:g} times as slow"
    )
    return msgspec.structs.replace(workload, requests=requests, source=f"{workload.source}; {how}")


def _scaled(request: TraceRequest, scale: Scale) -> TraceRequest:
    if request.block_tokens % scale.tokens:
        raise ValueError(f"blocks of {request.block_tokens} tokens are no multiple of {scale.tokens}")
    return msgspec.structs.replace(
        request,
        at_s=scale.time * request.at_s,
        think_s=scale.time * request.think_s,
        input_tokens=max(1, math.ceil(request.input_tokens / scale.tokens)),
        output_tokens=max(2, round(request.output_tokens / scale.steps)),
        block_tokens=request.block_tokens // scale.tokens,
    )
