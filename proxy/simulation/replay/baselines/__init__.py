"""Policies of other routers, from their descriptions, for comparison in simulated time alone.

    follows      what a baseline hears
    dynamo       blocks to compute and blocks in use
    llmd         the sum of normalised scores

They are policies by the contract of `scheduling/types.py`. What they know beyond a candidate they learn as a
router would: from its own decisions, from the answers that it relays, and from the engines' gauges, scraped
now and then. The policies that kvproxy comes with are in `scheduling/policies`.
"""

from collections.abc import Callable, Mapping

from proxy.scheduling.types import LegPolicy
from proxy.simulation.replay.baselines.dynamo import Dynamo
from proxy.simulation.replay.baselines.follows import Follows
from proxy.simulation.replay.baselines.llmd import LlmD

__all__ = ["BASELINES", "Dynamo", "Follows", "LlmD"]

BASELINES: Mapping[str, Callable[[], LegPolicy]] = {"dynamo": Dynamo, "llmd": LlmD}
"""The baselines by the names that a setup has. Each is made anew for a run."""
