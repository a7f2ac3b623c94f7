"""Blocks in a slower tier are reloaded before an engine uses them, at a share of the cost of computing
them.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from proxy.errors import ConfigError

MAIN_TIER = "GPU"
"""The tier from which an engine computes; vLLM calls it so on every platform."""

TIER_COSTS: Mapping[str, float] = MappingProxyType({"CPU": 0.2, "STORAGE": 0.5})
"""The shares by tier, with names as vLLM writes them (`MEDIUM_CPU`, `MEDIUM_STORAGE`).

They are an estimate for an 8B model with 128 KiB of KV a token: 20 GB/s over PCIe 4 reload 150 000 tokens/s
and 5 GB/s from NVMe 38 000, where 20 000 to 30 000 are computed."""


def read_tier_costs(texts: Sequence[str]) -> dict[str, float]:
    """Costs by tier from `TIER=SHARE` as on the command line. Raises ConfigError."""
    costs = {}
    for text in texts:
        tier, equals, share = text.partition("=")
        try:
            cost = float(share)
        except ValueError:
            cost = math.nan
        if not tier or not equals or not 0 <= cost <= 1:
            raise ConfigError(f"--tier-cost {text!r} is not TIER=SHARE with a share of 0 to 1")
        if tier == MAIN_TIER:
            raise ConfigError(
                f"--tier-cost {text!r}: engines compute from {MAIN_TIER}, nothing is reloaded there"
            )
        if tier in costs:
            raise ConfigError(f"--tier-cost {tier} is given twice")
        costs[tier] = cost
    return costs
