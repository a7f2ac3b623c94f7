"""Conversations: each turn has all earlier ones before it, and comes when its user has read the answer."""

from collections.abc import Mapping
from typing import ClassVar

from proxy.traces.generators.base import Generator
from proxy.traces.generators.contents import EMPTY, Contents
from proxy.traces.generators.draws import Draws
from proxy.traces.workload import TraceRequest


class Chats(Generator, frozen=True, kw_only=True):
    """A closed loop: users begin conversations at random, and go on once they are answered."""

    name: ClassVar[str] = "chats"
    most: ClassVar[Mapping[str, float]] = {"systems": 100_000}

    sessions_per_minute: float = 30.0
    turns: float = 6.0
    think_s: float = 20.0
    """From the end of an answer to the next message."""
    message_tokens: float = 200.0
    output_tokens: float = 300.0
    systems: int = 4
    """How many system prompts there are; 0 for none."""
    system_tokens: float = 1500.0
    exponent: float = 1.0
    """Of Zipf's law for the popularity of system prompts."""
    most_tokens: int = 120_000
    """A conversation ends before its prompt is longer."""

    def _requests(self) -> list[TraceRequest]:
        draws, contents = Draws(self.seed), Contents(self.block_tokens)
        systems = [contents.grown(EMPTY, draws.length(self.system_tokens)) for _ in range(self.systems)]
        popular = draws.popular(max(self.systems, 1), self.exponent)
        found: list[TraceRequest] = []
        begins = draws.times(self.sessions_per_minute / 60, self.duration_s)
        for number, begin_s in enumerate(begins):
            content = systems[popular.draw()] if systems else EMPTY
            after: int | None = None
            for _ in range(draws.turns(self.turns)):
                content = contents.grown(content, draws.length(self.message_tokens))
                if content.tokens > self.most_tokens:
                    break
                output = draws.length(self.output_tokens)
                found.append(
                    TraceRequest(
                        begin_s,
                        content.tokens,
                        output,
                        content.blocks,
                        self.block_tokens,
                        session=f"chat-{number}",
                        after=after,
                        think_s=draws.seconds(self.think_s) if after is not None else 0.0,
                    )
                )
                after = len(found) - 1
                content = contents.grown(content, output)
        return found
