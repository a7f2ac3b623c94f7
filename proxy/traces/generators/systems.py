"""Prompts under system prompts of which some are far more popular than others: an API with many products."""

from collections.abc import Mapping
from typing import ClassVar

from proxy.traces.generators.base import Generator
from proxy.traces.generators.contents import EMPTY, Contents
from proxy.traces.generators.draws import Draws
from proxy.traces.workload import TraceRequest


class Systems(Generator, frozen=True, kw_only=True):
    """By the clock; each prompt is a system prompt and a question of its own."""

    name: ClassVar[str] = "systems"
    most: ClassVar[Mapping[str, float]] = {"burst": 1000, "systems": 100_000}

    per_s: float = 4.0
    burst: float = 1.0
    """The deviation of gaps as a share of their mean: 1 is Poisson."""
    systems: int = 60
    exponent: float = 1.0
    """Of Zipf's law: 0 makes all equally popular."""
    system_tokens: float = 6000.0
    question_tokens: float = 800.0
    output_tokens: float = 250.0

    def _requests(self) -> list[TraceRequest]:
        draws, contents = Draws(self.seed), Contents(self.block_tokens)
        prompts = [
            contents.grown(EMPTY, draws.length(self.system_tokens)) for _ in range(max(self.systems, 1))
        ]
        popular = draws.popular(len(prompts), self.exponent)
        found = []
        for at_s in draws.times(self.per_s, self.duration_s, self.burst):
            prompt = contents.grown(prompts[popular.draw()], draws.length(self.question_tokens))
            output = draws.length(self.output_tokens)
            found.append(TraceRequest(at_s, prompt.tokens, output, prompt.blocks, self.block_tokens))
        return found
