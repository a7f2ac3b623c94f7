"""Trees of agents: a context that grows with every call of a tool, and sub-agents that fan out from it.

The defaults are near what public sessions of coding agents show (kv-cache-tester's: contexts from 20 thousand
to 200 thousand tokens, some 93 to 98 % of each prompt seen before, sub-agents that begin small).
"""

from typing import ClassVar

from proxy.traces.generators.base import Generator
from proxy.traces.generators.contents import EMPTY, Content, Contents
from proxy.traces.generators.draws import Draws
from proxy.traces.workload import TraceRequest


class Agents(Generator, frozen=True, kw_only=True):
    """A closed loop: sessions begin at random, and each call comes once its tool or its user is done."""

    name: ClassVar[str] = "agents"

    sessions_per_minute: float = 3.0
    system_tokens: int = 15_000
    """System prompt and tools, which all sessions share; 0 for none."""
    sub_system_tokens: int = 6000
    """The same for sub-agents that begin without their parent's context."""
    first_tokens: float = 6000.0
    """What a session begins with, beyond the system prompt."""
    least_context_tokens: int = 40_000
    most_context_tokens: int = 200_000
    """A session ends, or is made shorter, when its prompt would be longer than a length drawn from these."""
    compactions: float = 0.5
    """How often a full session goes on with a summary in the place of its context."""
    summary_tokens: float = 5000.0
    tool_tokens: float = 1800.0
    """What the result of a tool, or a user's message, adds to the context."""
    output_tokens: float = 350.0
    tool_s: float = 4.0
    """How long a tool runs."""
    user_share: float = 0.08
    """The share of calls that come after a user's message instead of a tool."""
    user_s: float = 90.0
    """How long a user thinks."""
    fan_out_share: float = 0.05
    """The share of calls of which sub-agents come."""
    sub_agents: float = 3.0
    sub_calls: float = 8.0
    forked_share: float = 0.5
    """The share of fan-outs whose sub-agents continue their parent's context; others begin anew."""

    def _requests(self) -> list[TraceRequest]:
        draws, contents = Draws(self.seed), Contents(self.block_tokens)
        system = contents.grown(EMPTY, self.system_tokens)
        sub_system = contents.grown(EMPTY, self.sub_system_tokens)
        found: list[TraceRequest] = []
        for number, begin_s in enumerate(draws.times(self.sessions_per_minute / 60, self.duration_s)):
            session = _Session(self, draws, contents, found, f"agent-{number}", begin_s)
            session.run(system, sub_system)
        return found


class _Session:
    """One tree."""

    def __init__(
        self,
        figures: Agents,
        draws: Draws,
        contents: Contents,
        found: list[TraceRequest],
        name: str,
        begin_s: float,
    ) -> None:
        self._figures = figures
        self._draws = draws
        self._contents = contents
        self._found = found
        self._name = name
        self._begin_s = begin_s

    def run(self, system: Content, sub_system: Content) -> None:
        """Its calls until its context is full for the last time."""
        figures, draws, contents = self._figures, self._draws, self._contents
        most = round(draws.between(figures.least_context_tokens, figures.most_context_tokens))
        left = draws.turns(figures.compactions + 1) - 1
        content = contents.grown(system, draws.length(figures.first_tokens))
        after: int | None = None
        while True:
            if content.tokens > most:
                if after is None or not left:
                    return
                left -= 1
                content = contents.grown(system, min(draws.length(figures.summary_tokens), most))
                if content.tokens > most:
                    return
            after, content = self._call(content, after, self._waits())
            if draws.happens(figures.fan_out_share):
                after = self._fan_out(content, sub_system, after, most)
            content = contents.grown(content, draws.length(figures.tool_tokens, 1.2))

    def _waits(self) -> float:
        """How long until the next call of a session."""
        if self._draws.happens(self._figures.user_share):
            return self._draws.seconds(self._figures.user_s)
        return self._draws.seconds(self._figures.tool_s, 1.2)

    def _call(self, content: Content, after: int | None, waits_s: float) -> tuple[int, Content]:
        """A call with this context. Returns its index, and the context with its answer."""
        output = self._draws.length(self._figures.output_tokens)
        self._found.append(
            TraceRequest(
                self._begin_s,
                content.tokens,
                output,
                content.blocks,
                self._figures.block_tokens,
                session=self._name,
                after=after,
                think_s=waits_s if after is not None else 0.0,
            )
        )
        return len(self._found) - 1, self._contents.grown(content, output)

    def _fan_out(self, content: Content, sub_system: Content, after: int, most: int) -> int:
        """Sub-agents, which begin at once. Returns the last call of the one with most to do, for which their
        parent waits.
        """
        figures, draws, contents = self._figures, self._draws, self._contents
        base = content if draws.happens(figures.forked_share) else sub_system
        lasts: list[tuple[int, int]] = []
        for _ in range(draws.turns(figures.sub_agents)):
            own, last, calls = contents.grown(base, draws.length(figures.first_tokens / 4)), after, 0
            for _ in range(draws.turns(figures.sub_calls)):
                if own.tokens > most:
                    break
                waits_s = draws.seconds(figures.tool_s, 1.2) if calls else 0.0
                last, own = self._call(own, last, waits_s)
                own = contents.grown(own, draws.length(figures.tool_tokens, 1.2))
                calls += 1
            lasts.append((calls, last))
        return max(lasts)[1]
