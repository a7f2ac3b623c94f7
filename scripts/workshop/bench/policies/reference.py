"""What others found on the recorded trace, with the engine of profile `dynamo-replay`.

`REPLAY` are figures of ai-dynamo 1.6.1's offline replay, `APART` those of a simulator that was written apart
from this one. Where prefill and decode are apart, that one's figures fit
half a decode step and a whole one from the end of a prompt's computing to its first token, and hardly any
transfer. Here, as in vLLM, a transfer begins with a step and the step after its end makes the first token:
another step and the transfer, 13 to 34 ms in the mean. Whole answers differ by no more than 4 %.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from proxy.scheduling.types import Candidate, Leg


class Expected(NamedTuple):
    """Figures of another simulator; None where it has none."""

    ttft_ms: float
    ttft_p99_ms: float
    reuse: float | None = None
    good: float | None = None
    whole_ms: float | None = None


Place = tuple[str, float, str]
"""A fleet, a speed and a policy."""

REPLAY: Mapping[Place, Expected] = {
    ("8b", 1.0, "round_robin"): Expected(321, 2048, 0.082),
    ("8b", 1.0, "dynamo"): Expected(277, 1691, 0.203),
    ("8b", 3.0, "round_robin"): Expected(392, 2406, 0.082),
    ("8b", 3.0, "dynamo"): Expected(366, 1848, 0.172),
    ("4b", 1.0, "round_robin"): Expected(516, 2577, 0.082),
    ("4b", 1.0, "dynamo"): Expected(463, 2007, 0.135),
}
APART: Mapping[Place, Expected] = {
    ("8b", 1.0, "round_robin"): Expected(321, 2076, 0.082),
    ("8b", 1.0, "dynamo"): Expected(271, 1715, 0.202),
    ("8b", 1.0, "today"): Expected(288, 1763, 0.209),
    ("8b", 3.0, "round_robin"): Expected(396, 2443, None, 0.971, 5557),
    ("8b", 3.0, "dynamo"): Expected(369, 1844, None, 0.974, 4800),
    ("8b", 3.0, "today"): Expected(460, 2012, None, 0.961, 4869),
    ("8b", 6.0, "round_robin"): Expected(3391, 21161, None, 0.153, 28123),
    ("8b", 6.0, "dynamo"): Expected(556, 2320, None, 0.147, 21522),
    ("8b", 6.0, "today"): Expected(763, 3102, None, 0.188, 21317),
    ("4p4d", 1.0, "round_robin"): Expected(502, 2504),
    ("4p4d", 1.0, "dynamo"): Expected(387, 1893),
    ("4p4d", 1.0, "today"): Expected(389, 1933),
    ("4p4d", 3.0, "round_robin"): Expected(721, 3121, None, None, 5094),
    ("4p4d", 3.0, "dynamo"): Expected(478, 2120, None, None, 4830),
    ("4p4d", 3.0, "today"): Expected(481, 2146, None, None, 4852),
    ("4p4d", 5.0, "round_robin"): Expected(4247, 0, None, 0.279, 12122),
    ("4p4d", 5.0, "dynamo"): Expected(1132, 0, None, 0.860, 9182),
    ("4p4d", 5.0, "today"): Expected(1127, 0, None, 0.859, 9110),
    ("6p2d", 1.0, "round_robin"): Expected(389, 0),
    ("6p2d", 1.0, "dynamo"): Expected(289, 0),
    ("6p2d", 3.0, "round_robin"): Expected(496, 2579, None, None, 10238),
    ("6p2d", 3.0, "dynamo"): Expected(336, 1815, None, None, 10161),
    ("6p2d", 3.0, "today"): Expected(336, 1812, None, None, 10138),
}

MS: Mapping[tuple[str, float], float] = {
    ("8b", 1.0): 236,
    ("8b", 3.0): 264,
    ("8b", 6.0): 353,
    ("4p4d", 1.0): 389,
    ("4p4d", 3.0): 451,
    ("4p4d", 5.0): 971,
    ("6p2d", 1.0): 289,
    ("6p2d", 3.0): 327,
}
"""Mean ms to the first token of that simulator's `ms`, a policy in milliseconds; at 6p2d 1x its dynamo's."""


class Today:
    """`cache_affinity` as it once was: a prompt counted as work until the end of its answer."""

    unit = "tokens"

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:  # noqa: ARG002  # a policy is asked so
        """As `LegPolicy`, in tokens."""
        return [(c.uncached_tokens or 0) + c.reload_cost_tokens + c.load_tokens for c in candidates]
