"""What work and what streams cost the leg that computes a prompt, and what they cost a decode leg."""

import pytest

from proxy.phases import Phase
from proxy.scheduling.policies import CacheAffinity
from proxy.scheduling.types import Candidate, Leg
from tests.helpers.candidates import candidate

PREFILL = Leg(Phase.PREFILL, "tiny", 100)
WHOLE = Leg(Phase.DECODE, "tiny", 100)
DECODE = Leg(Phase.DECODE, "tiny", 100, computes=False)


@pytest.mark.parametrize(
    ("leg", "there", "tokens"),
    [
        (PREFILL, candidate(uncached=20), 20),
        (PREFILL, candidate(uncached=20, prefill=300), 320),
        (PREFILL, candidate(uncached=20, prefill=300, decode=5000, load=5300), 420),
        (PREFILL, candidate(uncached=None, prefill=300), 300),
        (WHOLE, candidate(uncached=20, prefill=300, decode=5000), 420),
        (DECODE, candidate(uncached=20, prefill=300, decode=5000), 5320),
        (DECODE, candidate(uncached=None, decode=5000, load=5000), 5000),
    ],
)
def test_the_price_is_what_is_left_to_do(leg: Leg, there: Candidate, tokens: float) -> None:
    assert CacheAffinity().costs(leg, [there]) == [pytest.approx(tokens)]


def test_of_equal_instances_the_one_with_fewer_streams_gets_the_prompt() -> None:
    idle, streaming = candidate("a:1"), candidate("b:1", decode=100)
    costs = CacheAffinity().costs(PREFILL, [idle, streaming])
    assert costs[0] < costs[1] < costs[0] + 10
