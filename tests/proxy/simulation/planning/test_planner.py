"""A plan is of runs that were made, whenever the search ended."""

import msgspec
import pytest

from proxy.errors import ConfigError
from proxy.simulation.planning import search, splits
from proxy.simulation.planning.outcome import Plan, advice, as_table, met, plan_of, rows_of
from proxy.simulation.planning.page import page_of
from proxy.simulation.planning.planner import Planner
from proxy.simulation.planning.splits import Both
from proxy.simulation.planning.trial import Limit, attempt
from proxy.simulation.replay.figures import Goals
from proxy.simulation.replay.run import Progress, Setup, replay
from proxy.traces.generators import generator
from proxy.traces.workload import Workload

SETUP = Setup(policy="least_load", goals=Goals(ttft_ms=1500.0, tpot_ms=30.0))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return generator("unrelated:per_s=6,duration_s=60,seed=3").generate()


@pytest.fixture(scope="module")
def plan(workload: Workload) -> Plan:
    planner = Planner(workload, SETUP, gpus=3, sample=120)
    planner.run()
    return planner.plan()


def test_each_split_has_a_limit_that_its_runs_show(plan: Plan) -> None:
    assert [split.fleet for split in plan.splits] == ["1p2d", "2p1d", "3b"]
    for split in plan.splits:
        own = [t for t in plan.trials if t.fleet == split.fleet and t.whole == split.whole]
        assert split.meets is not None
        assert split.misses is not None
        assert split.meets < split.misses
        assert all(met(t, 0.95) for t in own if t.speed == split.meets)
        assert not any(met(t, 0.95) for t in own if t.speed == split.misses)
        assert split.margin == split.meets - 1
        assert split.limit in set(Limit)


def test_the_best_was_seen_with_all_of_the_traffic(plan: Plan) -> None:
    best = next(split for split in plan.splits if split.fleet == plan.take)
    assert best.whole
    assert all((split.meets or 0) <= (best.meets or 0) for split in plan.splits if split.whole)
    assert plan.task.sample is not None
    assert plan.task.sample.requests == 120
    assert plan.task.requests == max(t.requests for t in plan.trials) > 300
    assert sum(t.whole for t in plan.trials) < len(plan.trials) / 2


def test_what_a_sample_promised_and_all_of_the_traffic_disproved_is_not_recommended(plan: Plan) -> None:
    (one, *_), (other, *_) = ([t for t in plan.trials if t.fleet == fleet] for fleet in ("1p2d", "2p1d"))
    change = msgspec.structs.replace
    trials = [
        change(one, speed=2.0, whole=False, good=1.0, left=False),
        change(one, speed=2.0, whole=True, good=0.5),
        change(one, speed=0.1, whole=True, good=0.5),
        change(other, speed=1.0, whole=False, good=1.0, left=False),
    ]
    found = plan_of(plan.task, ["1p2d", "2p1d"], trials, finished=True)
    assert found.take == "2p1d"
    assert [(split.meets, split.misses, split.whole) for split in found.splits] == [
        (None, 0.1, True),
        (1.0, None, False),
    ]


def test_a_run_says_what_the_simulator_says(workload: Workload, plan: Plan) -> None:
    best = next(split for split in plan.splits if split.fleet == plan.take)
    assert best.meets is not None
    figures = replay(workload, msgspec.structs.replace(SETUP, fleet=best.fleet, speed=best.meets))
    assert best.at_limit is not None
    assert best.at_limit.good == figures.good >= 0.95
    assert best.at_limit.reuse == figures.reuse
    assert best.at_limit.good_per_s == pytest.approx(figures.good_per_s)
    assert best.per_s == pytest.approx(best.meets * (plan.task.per_s or 0))


def test_the_same_again_is_the_same(workload: Workload, plan: Plan) -> None:
    again = Planner(workload, SETUP, gpus=3, sample=120, fleets=["1p2d"])
    again.run()
    timeless = [msgspec.structs.replace(trial, wall_s=0.0) for trial in again.trials if not trial.whole]
    assert timeless == [
        msgspec.structs.replace(trial, wall_s=0.0)
        for trial in plan.trials
        if trial.fleet == "1p2d" and not trial.whole
    ]


def test_a_hopeless_run_is_left(workload: Workload) -> None:
    seen: list[int] = []

    def progress(over: int, _of: int, _at_s: float) -> None:
        seen.append(over)

    setup = msgspec.structs.replace(SETUP, fleet="1p2d", speed=50.0)
    trial = attempt(workload, setup, 0.95, whole=True, progress=progress)
    assert trial.left
    assert trial.good < 0.9
    assert seen[-1] < trial.requests
    assert trial.limit is Limit.PREFILL
    whole = attempt(workload, setup, 0.95, whole=True, leaves=False)
    assert not whole.left
    assert whole.good <= trial.good


def test_what_limits_is_told_apart(workload: Workload) -> None:
    patient = msgspec.structs.replace(SETUP, goals=Goals(ttft_ms=1e6, tpot_ms=8.0))
    trial = attempt(workload, msgspec.structs.replace(patient, fleet="2p1d", speed=4.0), 0.95, whole=True)
    assert trial.limit is Limit.DECODE
    assert trial.late_next > trial.late_first == 0


def test_an_end_before_its_time_leaves_what_is_known(workload: Workload) -> None:
    runs: list[str] = []

    def watch(what: str) -> Progress | None:
        if len(runs) == 7:
            raise KeyboardInterrupt
        runs.append(what)
        return None

    planner = Planner(workload, SETUP, gpus=3, sample=120, watch=watch)
    assert planner.left_s() is None
    with pytest.raises(KeyboardInterrupt):
        planner.run()
    plan = planner.plan(finished=False)
    assert len(plan.trials) == 7
    assert 0 < len(plan.splits) < 3
    assert plan.take == plan.splits[0].fleet
    assert runs[0].startswith("1p2d at 1 times")
    assert (planner.left_s() or 0) > 0
    assert "ended before its time" in page_of(plan)


@pytest.mark.parametrize("both", list(Both))
def test_what_is_left_counts_every_split_that_will_be_tried(
    both: Both, plan: Plan, workload: Workload
) -> None:
    planner = Planner(workload, SETUP, gpus=16, both=both, sample=0)
    of_both = {Both.NONE: 0, Both.ALL: 1, Both.SOME: 1 + len(splits.mixed(16))}[both]
    planner.trials.append(msgspec.structs.replace(plan.trials[0], fleet="1p15d", whole=True, wall_s=2.0))
    left = (splits.FEW + 5 + of_both) * search.most_runs() - 1
    assert planner.left_s() == pytest.approx(2.0 * left)


def test_goals_that_nobody_meets_are_said_to_be_so(workload: Workload) -> None:
    strict = msgspec.structs.replace(SETUP, goals=Goals(ttft_ms=20.0, tpot_ms=30.0))
    planner = Planner(workload, strict, gpus=2, sample=50)
    planner.run()
    plan = planner.plan()
    assert plan.take is None
    assert len(plan.trials) == 2 * 3
    words = " ".join(advice(plan))
    assert words.startswith(
        "No split of 2 GPUs was seen to give 95 % of requests with the first token within 20"
    )
    assert "Even with 0.05 of the load" in words
    assert [row[1] for row in rows_of(plan)] == ["none", "none"]
    assert "none" in page_of(plan)


def test_too_few_gpus_are_said_to_be_so(workload: Workload) -> None:
    busy = msgspec.structs.replace(workload, requests=[
        msgspec.structs.replace(request, at_s=request.at_s / 4) for request in workload.requests
    ])  # fmt: skip
    planner = Planner(busy, SETUP, gpus=4, gpus_per_instance=2, fleets=["2b"], sample=0)
    planner.run()
    plan = planner.plan()
    assert plan.take == "2b"
    assert (plan.splits[0].margin or 0) < 0
    needed = int(advice(plan)[1].split("about ")[1].split()[0])
    assert needed > 4
    assert needed % 2 == 0


def test_traffic_that_no_load_is_too_much_for_has_no_limit(plan: Plan) -> None:
    change = msgspec.structs.replace
    task = change(plan.task, gpus=1)
    most = change(plan.trials[0], fleet="1b", speed=search.HIGHEST, whole=True, good=1.0, left=False)
    words = advice(plan_of(task, ["1b"], [most], finished=True))
    assert words[0].startswith("Take 1b: 1 GPU carries 1000 times this traffic")
    assert words[2].startswith("No limit was found: more than 1000 times is not tried")
    missed = change(most, speed=900.0), change(most, speed=950.0, good=0.1, limit=Limit.DECODE)
    limited = advice(plan_of(task, ["1b"], missed, finished=True))
    assert not any("No limit" in told for told in limited)


def test_splits_are_as_asked(workload: Workload) -> None:
    def fleets(gpus: int, both: Both) -> list[str]:
        planner = Planner(workload, SETUP, gpus=gpus, both=both)
        return list(planner._order())

    assert fleets(3, Both.NONE) == ["1p2d", "2p1d"]
    assert fleets(3, Both.SOME) == ["1p2d", "2p1d", "3b", "1p1d1b"]
    assert fleets(1, Both.ALL) == ["1b"]
    with pytest.raises(ConfigError, match=r"--fleet '2x': write counts"):
        Planner(workload, SETUP, gpus=2, fleets=["2x"])


def test_a_table_has_a_row_for_each_split(plan: Plan) -> None:
    head, *lines = as_table(plan).splitlines()
    assert head.split()[:3] == ["split", "load", "margin"]
    assert [line.split()[0] for line in lines] == ["1p2d", "2p1d", "3b"]


def test_a_page_needs_nothing_else_and_marks_the_best(plan: Plan) -> None:
    page = page_of(plan)
    assert page == page_of(plan)
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert f"{plan.take} (take this)" in page
    assert "as recorded" in page
    hostile = msgspec.structs.replace(plan.task, workload="<b>", source='"><img src=x>')
    assert "<img" not in page_of(msgspec.structs.replace(plan, task=hostile))


def test_nothing_that_was_run_is_a_plan_too(plan: Plan) -> None:
    nothing = plan_of(plan.task, ["1p2d"], [], finished=False)
    assert nothing.take is None
    assert advice(nothing) == ["Nothing was run to its end."]
    assert page_of(nothing)
