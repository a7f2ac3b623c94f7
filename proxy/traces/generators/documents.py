"""Questions about long documents: several about each, close together, and then the document is forgotten."""

from typing import ClassVar

from proxy.traces.generators.base import Generator
from proxy.traces.generators.contents import EMPTY, Contents
from proxy.traces.generators.draws import Draws
from proxy.traces.workload import TraceRequest


class Documents(Generator, frozen=True, kw_only=True):
    """By the clock: a document appears, and is asked about at random for a while."""

    name: ClassVar[str] = "documents"

    documents_per_minute: float = 12.0
    document_tokens: float = 40_000.0
    most_tokens: int = 150_000
    """The longest document."""
    questions: float = 6.0
    """How many are asked about a document."""
    interest_s: float = 180.0
    """How long a document is of interest."""
    question_tokens: float = 120.0
    output_tokens: float = 350.0
    system_tokens: int = 400
    """A system prompt that all share; its length is not drawn."""

    def _requests(self) -> list[TraceRequest]:
        draws, contents = Draws(self.seed), Contents(self.block_tokens)
        system = contents.grown(EMPTY, self.system_tokens)
        found = []
        for number, begin_s in enumerate(draws.times(self.documents_per_minute / 60, self.duration_s)):
            tokens = min(draws.length(self.document_tokens), max(self.most_tokens, 1))
            document = contents.grown(system, tokens)
            for question in range(draws.turns(self.questions)):
                at_s = begin_s + (draws.between(0.0, self.interest_s) if question else 0.0)
                prompt = contents.grown(document, draws.length(self.question_tokens))
                found.append(
                    TraceRequest(
                        at_s,
                        prompt.tokens,
                        draws.length(self.output_tokens),
                        prompt.blocks,
                        self.block_tokens,
                        session=f"document-{number}",
                    )
                )
        return sorted(found, key=_at_s)


def _at_s(request: TraceRequest) -> float:
    return request.at_s
