"""Candidates as a policy sees them, for tests of prices."""

from proxy.fleet.why import Why
from proxy.scheduling.types import Candidate


def candidate(
    name: str = "a:1",
    *,
    rank: int = 0,
    usable: bool = True,
    uncached: int | None = 100,
    load: int = 0,
    prefill: int = 0,
    decode: int = 0,
    legs: int = 0,
    last_pick: int = 0,
    cached: int | None = 0,
) -> Candidate:
    """One of which everything not named is as on an idle instance with nothing cached."""
    return Candidate(
        instance=name,
        rank=rank,
        usable=usable,
        why=None if usable else Why.DOWN,
        cached_tokens=cached,
        expected_tokens=cached,
        uncached_tokens=uncached,
        load_tokens=load,
        index="exact",
        last_pick=last_pick,
        running_legs=legs,
        prefill_tokens=prefill,
        decode_tokens=decode,
    )
