"""The short form of scripts/chaos.py: engines fail at random under load, and every promise holds."""

import pathlib

import pytest

from tests.proofs.chaos.journal import Fault
from tests.proofs.chaos.report import explain
from tests.proofs.chaos.run import Options, Run, run

SEED = 4
ENGINES_WORDS = (Fault.FULL, Fault.EARLY_ERROR, Fault.LATE_ERROR, Fault.SLEEP)
"""Nothing breaks, and engines answer something else than what was asked for."""


def short(logs: pathlib.Path, seconds: float, policy: str, *faults: Fault) -> Run:
    made = run(
        Options(
            seconds=seconds,
            seed=SEED,
            logs=logs,
            clients=40,
            every_s=0.8,
            warm_up_s=4,
            rush_s=3,
            pause_s=0.5,
            faults=faults,
            policy=policy,
        )
    )
    assert not made.failures, "".join(explain(finding, made) for finding in made.failures[:5])
    assert len(made.crowd.records) > 100
    return made


@pytest.mark.timeout(300)  # two busy cores run ten processes here
def test_half_a_minute_of_chaos(tmp_path: pathlib.Path) -> None:
    made = short(tmp_path, 20, "least_ms")
    assert sum(count > 0 for count in made.journal.counts().values()) >= 4, "kinds of faults"


@pytest.mark.timeout(300)
def test_engines_that_refuse_fail_and_sleep_by_their_own_words(tmp_path: pathlib.Path) -> None:
    made = short(tmp_path, 15, "cache_affinity", *ENGINES_WORDS)
    struck = {fault for fault, count in made.journal.counts().items() if count}
    assert Fault.FULL in struck <= set(ENGINES_WORDS)
    assert len(struck) >= 3
