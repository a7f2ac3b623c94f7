"""`kvproxy plan` looks for the split of some GPUs into prefill and decode that carries most of some traffic.

It prints a table and what to do, and writes all of it as JSON and as a page, also if Ctrl-C ends it.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence

import msgspec

from proxy.cli.simulate import (
    SHOWN_EVERY_S,
    add_bypass,
    add_traffic,
    count,
    listed,
    make_folder,
    milliseconds,
    number,
    whole_number,
    workload_of,
    write_files,
)
from proxy.errors import ConfigError
from proxy.simulation.engine.latency import PROFILES
from proxy.simulation.planning.outcome import advice, as_table
from proxy.simulation.planning.page import page_of
from proxy.simulation.planning.planner import SAMPLE, SAMPLE_OF_INSTANCE, Planner
from proxy.simulation.planning.splits import Both
from proxy.simulation.replay.comparison import names_of_policies
from proxy.simulation.replay.figures import Goals
from proxy.simulation.replay.run import Progress, Setup, named_policy
from proxy.traces.shaping import between

PLAN, REPORT = "plan.json", "plan.html"
"""The names of the files in `--out`."""


def run(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """The command with these words, `parser` being an empty one. Raises ConfigError or TraceError; exits for
    --help, and for words that mean nothing.
    """
    parser.description = (
        "Tell how a number of GPUs is best split into instances that prefill and that decode, for traffic as"
        " recorded: the highest load at which enough requests meet the goals, for each split, by runs in"
        " simulated time. Ctrl-C ends it with what is known so far."
    )
    _add_flags(parser)
    _plan(parser.parse_args(words))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    usual = Setup()
    traffic = add_traffic(parser)
    traffic.add_argument(
        "--minutes", type=_minutes, metavar="COUNT", help="only the first minutes of the traffic"
    )
    wanted = parser.add_argument_group("what is wanted")
    wanted.add_argument(
        "--ttft-ms", type=milliseconds, default=500.0, metavar="MS",
        help="a request is good if its first token came by then (default: %(default)g) ...",
    )  # fmt: skip
    wanted.add_argument(
        "--itl-ms", type=milliseconds, default=30.0, metavar="MS",
        help="... and each further one took no more than this in the mean (default: %(default)g)",
    )  # fmt: skip
    wanted.add_argument(
        "--goodput", type=_goodput, default=0.95, metavar="SHARE",
        help="the share of requests that is to be good (default: %(default)g)",
    )  # fmt: skip
    fleet = parser.add_argument_group("what there is")
    fleet.add_argument("--gpus", type=count, required=True, metavar="COUNT", help="how many GPUs to split")
    fleet.add_argument(
        "--gpus-per-instance", type=count, default=1, metavar="COUNT",
        help="so many make one instance, whose profile it is (default: %(default)s)",
    )  # fmt: skip
    fleet.add_argument(
        "--both", type=Both, choices=list(Both), default=Both.ALL,
        help="whether instances that do both are tried: none, a fleet of nothing else (all), or also some"
        " beside those of one role (default: %(default)s)",
    )  # fmt: skip
    fleet.add_argument(
        "--fleet", metavar="COUNTS",
        help="try only these, several with commas: 2p6d,3p5d,8b (default: all splits; of many, some and those"
        " around the best)",
    )  # fmt: skip
    fleet.add_argument(
        "--profile", default=usual.profile, metavar="NAME|FILE",
        help=f"how fast engines are, one of {', '.join(PROFILES)}, or a file of `kvproxy fit`"
        " (default: %(default)s)",
    )  # fmt: skip
    fleet.add_argument(
        "--policy", default=usual.policy, metavar="NAME",
        help=f"one of {', '.join(names_of_policies())}, or package.module:Class (default: %(default)s)",
    )  # fmt: skip
    fleet.add_argument(
        "--event-delay-ms", type=milliseconds, default=1000 * usual.event_delay_s, metavar="MS",
        help="from an engine's step until its KV events are in the index (default: %(default)g)",
    )  # fmt: skip
    add_bypass(fleet)
    output = parser.add_argument_group("how")
    output.add_argument(
        "--sample", type=_sample, metavar="REQUESTS",
        help="look for limits on so many requests, where they are densest, and serve all of them only on the"
        f" best splits; 0: always all (default: {SAMPLE}, or {SAMPLE_OF_INSTANCE} for each instance)",
    )  # fmt: skip
    output.add_argument(
        "--out", type=pathlib.Path, metavar="DIR",
        help=f"write all of it to DIR/{PLAN}, and a page with plots to DIR/{REPORT}",
    )  # fmt: skip


def _plan(given: argparse.Namespace) -> None:
    named_policy(given.policy)
    setup = Setup(
        policy=given.policy,
        profile=given.profile,
        seed=given.seed,
        event_delay_s=given.event_delay_ms / 1000,
        bypass_tokens=given.bypass,
        goals=Goals(given.ttft_ms, given.itl_ms),
    )
    setup.check()
    workload = workload_of(given)
    if given.minutes is not None:
        workload = between(workload, 0.0, 60 * given.minutes)
    shown = _Shown()
    planner = Planner(
        workload,
        setup,
        gpus=given.gpus,
        gpus_per_instance=given.gpus_per_instance,
        share=given.goodput,
        both=given.both,
        fleets=_fleets(given),
        sample=given.sample,
        watch=shown.next,
    )
    shown.planner = planner
    if given.out is not None:
        make_folder(given.out)
    print(f"{workload.name}: {len(workload.requests)} requests, {workload.source}", flush=True)
    finished = False
    try:
        planner.run()
        finished = True
    finally:  # what is known stays known
        shown.wipe()
        _tell(planner, given.out, finished=finished)


def _fleets(given: argparse.Namespace) -> list[str]:
    if given.fleet is None:
        return []
    if given.both is not Both.ALL:
        raise ConfigError("--both says which splits are tried, and --fleet does: give one of them")
    fleets = [fleet.lower() for fleet in listed("--fleet", given.fleet)]
    return list(dict.fromkeys(fleets))


def _tell(planner: Planner, out: pathlib.Path | None, *, finished: bool) -> None:
    plan = planner.plan(finished=finished)
    if not plan.trials:
        return
    try:
        if out is not None:
            figures = msgspec.json.format(msgspec.json.encode(plan), indent=1)
            write_files(out, {PLAN: figures, REPORT: page_of(plan).encode()})
    finally:  # what was found is told also if the disk is full
        print(as_table(plan))
        if not finished:
            print("The search was ended before its time: this is what was known then.")
        print("\n".join(advice(plan)))


class _Shown:
    """What is run, and how long the rest takes: a line on stderr once, and one that is written anew if that
    is a terminal.
    """

    def __init__(self) -> None:
        self.planner: Planner | None = None
        self._what = ""
        self._last_s = 0.0
        self._told = False

    def next(self, what: str) -> Progress:
        """The next run begins."""
        self._what = what
        left_s = self.planner.left_s() if self.planner is not None else None
        if left_s is not None and not self._told:
            self._told = True
            self.wipe()
            print(f"this will take about {_duration(left_s)}", file=sys.stderr, flush=True)
        return self._heard

    def _heard(self, over: int, of: int, _at_s: float) -> None:
        now_s = time.monotonic()
        if not sys.stderr.isatty() or now_s - self._last_s < SHOWN_EVERY_S:
            return
        self._last_s = now_s
        left_s = self.planner.left_s() if self.planner is not None else None
        words = f"{self._what}: {over} of {of} requests"
        if left_s is not None:
            words += f"; about {_duration(left_s)} left"
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)

    def wipe(self) -> None:
        """Nothing is under way."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def _minutes(text: str) -> float:
    return number(text, 0.01, 1e6)


def _goodput(text: str) -> float:
    return number(text, 0.01, 1.0)


def _sample(text: str) -> int:
    return whole_number(text, 0, 10**9)
