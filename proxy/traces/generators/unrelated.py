"""Prompts that have nothing in common: a cache is worth nothing, and a router for caches may only cost."""

from collections.abc import Mapping
from typing import ClassVar

from proxy.traces.generators.base import Generator
from proxy.traces.generators.contents import EMPTY, Contents
from proxy.traces.generators.draws import Draws
from proxy.traces.workload import TraceRequest


class Unrelated(Generator, frozen=True, kw_only=True):
    """By the clock, with lengths far apart."""

    name: ClassVar[str] = "unrelated"
    most: ClassVar[Mapping[str, float]] = {"burst": 1000, "input_spread": 10}

    per_s: float = 4.0
    burst: float = 1.0
    """The deviation of gaps as a share of their mean: 1 is Poisson."""
    input_tokens: float = 4000.0
    input_spread: float = 1.2
    """The standard deviation of the logarithm of lengths."""
    output_tokens: float = 300.0
    most_tokens: int = 120_000
    """The longest prompt."""

    def _requests(self) -> list[TraceRequest]:
        draws, contents = Draws(self.seed), Contents(self.block_tokens)
        found = []
        for at_s in draws.times(self.per_s, self.duration_s, self.burst):
            tokens = min(draws.length(self.input_tokens, self.input_spread), max(self.most_tokens, 1))
            prompt = contents.grown(EMPTY, tokens)
            output = draws.length(self.output_tokens)
            found.append(TraceRequest(at_s, prompt.tokens, output, prompt.blocks, self.block_tokens))
        return found
