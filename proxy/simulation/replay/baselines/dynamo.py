"""NVIDIA Dynamo's router prices blocks: those to compute where a request goes, and those in use there.

    cost = max(blocks of unfinished prefills + prompt blocks - cached blocks, 0) + blocks of running requests

The lowest cost wins, and of equal ones one at random. A prefill counts from the decision until its prompt is
computed, with the blocks that were not cached; a request's own blocks count until it ends. Of two legs the
one that prefills is placed by the first term, the one that decodes by the second.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from proxy.phases import Phase
from proxy.scheduling.types import Candidate, Leg
from proxy.simulation.replay.baselines.follows import Gauge

BLOCK_TOKENS = 64
"""The tokens of a block, in which all its amounts are counted."""


class Dynamo:
    """The rule of Dynamo's router, by its own bookkeeping."""

    unit = "blocks"
    reads_prompt = True
    scrape_s = None

    def __init__(self) -> None:
        self._prefilling: Counter[str] = Counter()
        """Tokens that are to be computed, by instance."""
        self._active: Counter[str] = Counter()
        """Tokens of requests that run, by instance."""
        self._of: dict[int, tuple[str, int, str, int]] = {}

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        """As `LegPolicy`, in blocks."""
        prompt = leg.prompt_tokens or 0
        costs = []
        for each in candidates:
            cost = 0.0
            if leg.phase is Phase.PREFILL:
                cost = max(self._prefilling[each.instance] + prompt - (each.cached_tokens or 0), 0)
            if leg.phase is Phase.DECODE or each.serves_all:
                cost += self._active[each.instance]
            costs.append(cost / BLOCK_TOKENS)
        return costs

    def began(self, number: int, prefill: Candidate, decode: Candidate, prompt_tokens: int) -> None:
        """As `Follows`."""
        new = prompt_tokens - (prefill.cached_tokens or 0)
        self._of[number] = prefill.instance, new, decode.instance, prompt_tokens
        self._prefilling[prefill.instance] += new
        self._active[decode.instance] += prompt_tokens

    def computed(self, number: int) -> None:
        """As `Follows`."""
        prefill, new, decode, prompt_tokens = self._of[number]
        self._prefilling[prefill] -= new
        self._of[number] = prefill, 0, decode, prompt_tokens

    def ended(self, number: int) -> None:
        """As `Follows`."""
        prefill, new, decode, prompt_tokens = self._of.pop(number)
        self._prefilling[prefill] -= new
        self._active[decode] -= prompt_tokens

    def scraped(self, gauges: Mapping[str, Gauge]) -> None:
        """As `Follows`; it does not read them."""
