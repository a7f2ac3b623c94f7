"""The benchmark of decisions lets requests in, in fleets of any size and by every policy."""

import pytest

from proxy.scheduling.policies import POLICIES
from scripts.workshop.bench.decisions import run


def test_it_prints_a_row_for_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    run([1, 2], requests=40, rounds=1)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {policy}" for policy in POLICIES]
    assert all(row.count(" us") == 2 for row in rows)
