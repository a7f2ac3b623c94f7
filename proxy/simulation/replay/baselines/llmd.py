"""llm-d's scheduler adds up scores between 0 and 1, each with a weight, and the highest sum wins.

    precise prefix 3    the cached part of the prompt, of the most that any candidate has
    KV utilisation 2    1 - the share of KV in use
    queue 2             by the requests that wait: 1 for the shortest queue, 0 for the longest
    no-hit LRU 2        for a prompt that nobody has cached: 1 for who was given such a one longest ago, 0 for
                        who was last

KV in use and queues are gauges of the engines, scraped twenty times a second.
"""

from collections.abc import Mapping, Sequence

from proxy.phases import Phase
from proxy.scheduling.types import Candidate, Leg
from proxy.simulation.replay.baselines.follows import Gauge

PREFIX, USAGE, QUEUE, NO_HIT = 3.0, 2.0, 2.0, 2.0


class LlmD:
    """The rule of llm-d's scheduler with precise prefix scores."""

    unit = "score below the highest"
    reads_prompt = True
    scrape_s = 0.05

    def __init__(self) -> None:
        self._gauges: Mapping[str, Gauge] = {}
        self._colds = 0
        self._last_cold: dict[str, int] = {}
        """When an instance was given a prompt last that nobody had cached, as a running number."""
        self._cold = False
        """Whether nobody had the prompt cached that was asked about last."""

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        """As `LegPolicy`: what the sum of the scores lacks to the highest possible one."""
        gauges = [self._gauges.get(each.instance) for each in candidates]
        queues = [gauge.waiting if gauge else 0 for gauge in gauges]
        shortest, longest = min(queues), max(queues)
        cached = [each.cached_tokens or 0 for each in candidates]
        most = max(cached)
        if leg.phase is Phase.PREFILL:
            self._cold = not most
        colds = {
            each.instance: place
            for place, each in enumerate(
                sorted(candidates, key=lambda each: self._last_cold.get(each.instance, 0))
            )
        }
        costs = []
        for each, gauge, queue, there in zip(candidates, gauges, queues, cached, strict=True):
            score = PREFIX * (there / most if most else 0.0)
            score += USAGE * (1 - (gauge.usage if gauge else 0.0))
            score += QUEUE * ((longest - queue) / (longest - shortest) if longest > shortest else 1.0)
            cold = 1 - colds[each.instance] / max(1, len(candidates) - 1) if not most else 0.5
            score += NO_HIT * cold
            costs.append(PREFIX + USAGE + QUEUE + NO_HIT - score)
        return costs

    def began(self, number: int, prefill: Candidate, decode: Candidate, prompt_tokens: int) -> None:  # noqa: ARG002  # as Follows has it
        """As `Follows`."""
        if self._cold:
            self._colds += 1
            self._last_cold[prefill.instance] = self._colds

    def computed(self, number: int) -> None:
        """As `Follows`; it keeps no count of requests."""

    def ended(self, number: int) -> None:
        """As `Follows`; it keeps no count of requests."""

    def scraped(self, gauges: Mapping[str, Gauge]) -> None:
        """As `Follows`."""
        self._gauges = gauges
