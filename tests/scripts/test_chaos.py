"""The short form of scripts/chaos.py: engines fail at random under load, and every promise holds."""

import pathlib

import pytest
from proof.chaos import Options, run
from proof.report import explain

SEED = 4


@pytest.mark.timeout(300)  # two busy cores run ten processes here
def test_half_a_minute_of_chaos(tmp_path: pathlib.Path) -> None:
    options = Options(seconds=20, seed=SEED, logs=tmp_path, clients=40, every_s=0.8, warm_up_s=4, pause_s=0.5)
    made = run(options)
    assert not made.failures, "".join(explain(finding, made) for finding in made.failures[:5])
    assert len(made.crowd.records) > 100
    assert sum(count > 0 for count in made.journal.counts().values()) >= 4, "kinds of faults"
