"""The benchmark of decisions lets requests in, in fleets of any size and by every policy."""

import pytest

from proxy.scheduling.policies import POLICIES
from scripts.workshop.bench.decisions import Size, run


def test_it_prints_rows_for_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    run([Size.of("1"), Size.of("2b")], requests=40, rounds=1)
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| policy | CPU of | 1+1 | 2 both |"
    named = [tuple(row.strip("| ").split(" | ")[:2]) for row in rows]
    usual = ("admission", "of it the index", "its decision")
    forms = ("within limits", "after a failure", "with a goal", "to be shown", "learning")
    assert named == [
        (policy, kind) for policy in POLICIES for kind in (usual + forms if policy == "least_ms" else usual)
    ]
    assert all(row.count(" us") == 2 for row in rows)
