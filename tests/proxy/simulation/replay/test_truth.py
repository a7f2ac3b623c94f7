"""On a slice of a public trace the simulator finds what it found when its whole met the figures of others.

`scripts/bench_policies.py --only truth` compares the whole trace with those figures; here a slice, whose
figures are pinned, shows that nothing has changed since.
"""

import pathlib

import pytest

from proxy.traces.readers import read
from scripts.workshop.bench.policies.cells import Asked, run_cell

SLICE = pathlib.Path(__file__).parent / "data" / "conversation_slice.jsonl.gz"
TIES = 0.04
"""Other draws of ties move a mean by so much in so short a slice; where none are drawn it is the same."""


@pytest.mark.parametrize(
    ("fleet", "speed", "policy", "ttft_ms", "ttft_p99_ms", "reuse", "whole_ms"),
    [
        ("8b", 1.0, "round_robin", 373.8, 2391, 0.0453, 3282),
        ("8b", 1.0, "dynamo", 353.3, 1844, 0.1107, 3096),
        ("8b", 3.0, "round_robin", 468.5, 2692, 0.0453, 5715),
        ("8b", 3.0, "today", 505.7, 2204, 0.0948, 5379),
        ("4p4d", 3.0, "round_robin", 831.9, 3277, 0.0637, 5694),
        ("4p4d", 3.0, "dynamo", 572.8, 2167, 0.1198, 5376),
        ("6p2d", 3.0, "dynamo", 433.7, 1927, 0.1296, 9981),
    ],
)
def test_a_slice_is_as_it_was(
    fleet: str, speed: float, policy: str, ttft_ms: float, ttft_p99_ms: float, reuse: float, whole_ms: float
) -> None:
    got = run_cell(Asked("conversation", fleet, policy, speed), read(SLICE))
    like = 0.005 if policy == "round_robin" else TIES
    assert got.served == got.requests == 449
    assert got.ttft_ms == pytest.approx(ttft_ms, rel=like)
    assert got.ttft_p99_ms == pytest.approx(ttft_p99_ms, rel=like)
    assert got.whole_ms == pytest.approx(whole_ms, rel=like)
    assert got.reuse == pytest.approx(reuse, rel=3 * like)
