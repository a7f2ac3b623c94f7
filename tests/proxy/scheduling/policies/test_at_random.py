"""Each instance gets the same share, whatever is known of it."""

import random
from collections import Counter

from proxy.scheduling.legs import ByLeg
from proxy.scheduling.policies import AtRandom
from proxy.scheduling.types import View
from tests.helpers.candidates import candidate


def test_each_gets_its_share_whatever_it_has_to_do() -> None:
    rng = random.Random(1)
    candidates = [candidate(f"{n}:1", load=1000 * n, cached=10 * n) for n in range(4)]
    drawn = Counter(
        chosen.instance
        for _ in range(400)
        if (chosen := ByLeg(AtRandom()).choose(View("tiny", 100, candidates, ()), rng).prefill.chosen)
    )
    assert len(drawn) == 4
    assert min(drawn.values()) > 60
