"""What is said of a split follows from its runs, also if the search was ended before its time."""

import math
from collections.abc import Sequence

import msgspec

from proxy.simulation.planning.search import HIGHEST, LOWEST, Bracket
from proxy.simulation.planning.trial import Limit, Trial
from proxy.simulation.replay.comparison import lines_of
from proxy.simulation.replay.run import Setup


class Sample(msgspec.Struct, frozen=True):
    """The stretch of a workload that is served while a limit is looked for."""

    requests: int
    from_s: float
    to_s: float


class Task(msgspec.Struct, frozen=True):
    """What was asked."""

    workload: str
    source: str
    requests: int
    per_s: float | None
    """Requests that come in a second, as recorded; None for a closed loop, whose users wait for the fleet."""
    gpus: int
    gpus_per_instance: int
    share: float
    """Of requests that are to meet the goals."""
    setup: Setup
    """What all runs have in common; its fleet and speed mean nothing."""
    sample: Sample | None
    """None if all of the workload was served in each run."""


class Carries(msgspec.Struct, frozen=True):
    """What a split carries."""

    fleet: str
    meets: float | None
    """The highest load that met the goals, as a multiple of the recorded one; None if none did."""
    misses: float | None
    """The lowest that did not; None if none did not."""
    per_s: float | None
    """Requests a second at `meets`."""
    margin: float | None
    """What of the recorded load it carries more, as a share of that; below 0 if it does not carry it."""
    limit: Limit | None
    """What the requests missed the goals for at `misses`."""
    whole: bool
    """Whether this is of runs of the whole workload, not of the sample."""
    at_limit: Trial | None
    """The run at `meets`, or the one at the lowest load if none met the goals."""
    runs: int


class Plan(msgspec.Struct, frozen=True):
    """How so many GPUs are best split."""

    task: Task
    splits: Sequence[Carries]
    take: str | None
    """The split that carries most; None if none meets the goals."""
    finished: bool
    """False if the search was ended before its time."""
    wall_s: float
    trials: Sequence[Trial]


def plan_of(task: Task, fleets: Sequence[str], trials: Sequence[Trial], *, finished: bool) -> Plan:
    """What the runs say of each fleet that has any."""
    splits = []
    for fleet in fleets:
        own = [trial for trial in trials if trial.fleet == fleet]
        if own:
            splits.append(_carries(task, fleet, own))
    best = best_of(splits)
    return Plan(
        task=task,
        splits=splits,
        take=None if best is None else best.fleet,
        finished=finished,
        wall_s=sum(trial.wall_s for trial in trials),
        trials=trials,
    )


def best_of(splits: Sequence[Carries]) -> Carries | None:
    """The split that carries most, of those that were seen to carry it in a run of the whole workload if
    there are any; of equal ones the first.
    """
    able = [split for split in splits if split.meets is not None]
    proven = [split for split in able if split.whole]
    return max(proven or able, key=lambda split: split.meets or 0.0, default=None)


def bracket_of(trials: Sequence[Trial], share: float) -> Bracket:
    """What runs of one fleet and one workload say of its limit."""
    missed = [trial.speed for trial in trials if not met(trial, share)]
    misses = min(missed, default=None)
    below = [trial.speed for trial in trials if met(trial, share) and trial.speed < (misses or math.inf)]
    return Bracket(max(below, default=None), misses)


def met(trial: Trial, share: float) -> bool:
    """Whether enough requests met the goals."""
    return not trial.left and trial.good >= share - 1e-9


def _carries(task: Task, fleet: str, own: Sequence[Trial]) -> Carries:
    trials = [trial for trial in own if trial.whole] or own
    found = bracket_of(trials, task.share)
    known = {trial.speed: trial for trial in trials}
    beyond = known[found.misses] if found.misses is not None else None
    return Carries(
        fleet=fleet,
        meets=found.meets,
        misses=found.misses,
        per_s=task.per_s * found.meets if task.per_s is not None and found.meets is not None else None,
        margin=None if found.meets is None else found.meets - 1,
        limit=beyond.limit if beyond is not None else None,
        whole=trials[0].whole,
        at_limit=known[found.meets if found.meets is not None else min(known)],
        runs=len(own),
    )


COLUMNS = (
    "split", "load", "margin", "requests/s", "good", "TTFT ms", "ms/token", "reuse", "prefill", "decode",
    "KV", "limit", "seen on", "runs",
)  # fmt: skip
"""`TTFT ms` and `ms/token` are what the wanted share did not exceed."""


def rows_of(plan: Plan) -> list[list[str]]:
    """The table: a row for each split, under `COLUMNS`."""
    return [
        [
            split.fleet,
            "none" if split.meets is None else f"{split.meets:g}",
            "" if split.margin is None else f"{split.margin:+.0%}",
            "" if split.per_s is None else f"{split.per_s:.3g}",
            *_at_limit(split.at_limit),
            split.limit or "",
            "all" if split.whole else "sample",
            str(split.runs),
        ]
        for split in plan.splits
    ]


def _at_limit(trial: Trial | None) -> list[str]:
    if trial is None:
        return [""] * 7
    return [
        f"{'<' if trial.left else ''}{trial.good:.3f}",
        f"{trial.ttft_ms:.0f}",
        f"{trial.tpot_ms:.1f}",
        f"{trial.reuse:.3f}",
        f"{trial.prefill_use:.0%}",
        f"{trial.decode_use:.0%}",
        f"{trial.kv_use:.0%}",
    ]


def as_table(plan: Plan) -> str:
    """The table as text."""
    return lines_of([[*COLUMNS], *rows_of(plan)], words=1)


def advice(plan: Plan) -> list[str]:
    """What to do, in sentences."""
    task, goals = plan.task, plan.task.setup.goals
    wanted = (
        f"{100 * task.share:.4g} % of requests"
        f" with the first token within {goals.ttft_ms:g} ms and {goals.tpot_ms:g} ms a token"
    )
    gpus = "1 GPU" if task.gpus == 1 else f"{task.gpus} GPUs"
    carry = "carries" if task.gpus == 1 else "carry"
    best = next((split for split in plan.splits if split.fleet == plan.take), None)
    if best is None or best.meets is None:
        return _why_not(plan, wanted, gpus)
    load = f"{best.meets:g} times this traffic"
    if best.per_s is not None:
        load += f" ({best.per_s:.3g} requests a second)"
    words = [f"Take {best.fleet}: {gpus} {carry} {load}, {wanted}."]
    if best.meets >= 1:
        words.append(f"That is a margin of {best.meets - 1:.0%} over the load as recorded.")
    else:
        needed = math.ceil(task.gpus / best.meets / task.gpus_per_instance) * task.gpus_per_instance
        words.append(
            f"That is less than the load as recorded: if it grows with the GPUs, about {needed} carry it."
        )
    if best.limit is not None:
        words.append(f"Its limit is {_LIMITS[best.limit]}.")
    elif best.meets >= HIGHEST:
        words.append(
            f"No limit was found: more than {HIGHEST:g} times is not tried, and at so many times all requests"
            " may be there at once. Plan with more traffic, or for goals that are harder to meet."
        )
    close = [
        split.fleet
        for split in plan.splits
        if split.fleet != best.fleet and split.meets is not None and split.meets >= best.meets / 1.06
    ]
    if close:
        words.append(f"As good within what was measured: {', '.join(close)}.")
    return words


_LIMITS = {
    Limit.PREFILL: "prefill: beyond it prompts wait for each other",
    Limit.DECODE: "decode: beyond it steps take too long",
    Limit.MEMORY: "memory: beyond it KV is full where answers are generated",
    Limit.REFUSED: "requests that are not served",
}


def _why_not(plan: Plan, wanted: str, gpus: str) -> list[str]:
    task = plan.task
    seen = [split.at_limit for split in plan.splits if split.at_limit is not None]
    if not seen:
        return ["Nothing was run to its end."]
    best = max(seen, key=lambda trial: trial.good)
    words = [f"No split of {gpus} was seen to give {wanted}."]
    if best.speed <= IDLE:
        seconds = f"{best.ttft_ms:.0f} ms, and {best.tpot_ms:.1f} ms a token"
        words.append(
            f"Even with {best.speed:g} of the load {best.fleet} gives it to {100 * best.good:.3g} %:"
            f" {100 * task.share:.4g} % have the first token within {seconds}."
        )
        words.append(
            "Engines of this profile are not so fast with these prompts: allow more with --ttft-ms or"
            " --itl-ms, or want less with --goodput."
        )
    return words


IDLE = max(0.05, LOWEST)
"""A load at which requests hardly meet."""
