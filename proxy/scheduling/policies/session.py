"""The requests of a session go to one instance while it has no more to do than others, and few sessions move
when an instance comes or goes.

Each session has an order of its own among all instances: that of the hashes of its name with theirs
(rendezvous hashing: Thaler and Ravishankar, 1998). It uses the first of them that is not busy beyond a bound
(consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018). So an instance that leaves
sends its sessions to many others, one that joins takes its share from all, and no other session moves.
Several kvproxies agree without a word.
"""

import bisect
import hashlib
from collections.abc import Sequence

from proxy.scheduling.types import Candidate, Leg

BOUND = 1.5
"""An instance is busy if this many times the mean work of all waits there: between the 1.25 of the paper,
with which sessions move often, and 2, with which one may wait twice as long as need be."""

FLOOR_TOKENS = 8192
"""Below this work nothing is busy: it is one step of an engine (`max_num_batched_tokens`), and a session that
moves has its whole prompt computed again."""

HASH_BYTES = 8


class Session:
    """Prices a candidate by its place in the session's order, those that are busy behind all others.

    What counts as work is what is still to be computed, and for decode legs the contexts of those that run as
    well: how many requests run says little of how long one would wait. Requests without a session go where
    the fewest tokens are outstanding.
    """

    unit = "places"
    reads_prompt = False
    reads_session = True

    def costs(self, leg: Leg, candidates: Sequence[Candidate]) -> list[float]:
        """As `LegPolicy`, in places."""
        if leg.session is None:
            loads = [c.load_tokens for c in candidates]
            places = sorted(loads)
            return [float(bisect.bisect_left(places, load)) for load in loads]
        works = [c.prefill_tokens + (0 if leg.computes else c.decode_tokens) for c in candidates]
        bound = max(FLOOR_TOKENS, BOUND * sum(works) / len(works))
        costs = [0.0] * len(candidates)
        for place, number in enumerate(_order(leg.session, candidates)):
            costs[number] = float(place if works[number] <= bound else place + len(candidates))
        return costs


def _order(session: str, candidates: Sequence[Candidate]) -> list[int]:
    """The numbers of the candidates in the order of a session, which changes for no other candidate's
    sake.
    """
    named = hashlib.blake2b(session.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES)

    def rank_of(number: int) -> tuple[bytes, str, int]:
        candidate = candidates[number]
        hashed = named.copy()
        hashed.update(b"\0%s#%d" % (candidate.instance.encode(), candidate.rank))
        return hashed.digest(), candidate.instance, candidate.rank

    return sorted(range(len(candidates)), key=rank_of)
