"""`kvproxy simulate` lets a fleet that need not exist serve recorded or generated traffic, in simulated time.

It prints a table of figures, a line for each fleet, speed and policy, and writes all of them as JSON and as a
page.
"""

import argparse
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from proxy.config import Config
from proxy.config.settings import settings_of
from proxy.errors import ConfigError
from proxy.simulation.engine.latency import PROFILES
from proxy.simulation.replay.comparison import Cell, Comparison, as_table, cells_of, names_of_policies
from proxy.simulation.replay.figures import Goals
from proxy.simulation.replay.run import Outage, Setup, named_policy
from proxy.simulation.report.page import page_of
from proxy.traces.generators import GENERATORS, MOST_SEED, generator
from proxy.traces.readers import read
from proxy.traces.shaping import spread
from proxy.traces.workload import Workload

T = TypeVar("T")

FIGURES, REPORT = "figures.json", "report.html"
"""The names of the files in `--out`."""
BYPASS = next(declared for declared in settings_of(Config) if declared.setting.flag == "--bypass")
"""The setting of `kvproxy serve` that means the same here."""
SHOWN_EVERY_S = 0.5
"""Seconds between two lines of progress on a terminal."""


def run(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """The command with these words, `parser` being an empty one. Raises ConfigError or TraceError; exits for
    --help, and for words that mean nothing.
    """
    parser.description = (
        "Let a fleet that need not exist serve traffic in simulated time, and tell what its users would see. "
        "Requests are routed by what serves them in earnest; only clock and engines are simulated."
    )
    _add_flags(parser)
    _simulate(parser.parse_args(words))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    usual = Setup()
    traffic = add_traffic(parser)
    fleet = parser.add_argument_group("what serves")
    fleet.add_argument(
        "--fleet", default=usual.fleet, metavar="COUNTS",
        help="instances by role, p for prefill, d for decode, b for both; several with commas: 8b,4p4d"
        " (default: %(default)s)",
    )  # fmt: skip
    fleet.add_argument(
        "--policy", default=usual.policy, metavar="NAME",
        help=f"all, or some with commas of {', '.join(names_of_policies())}, or package.module:Class"
        " (default: %(default)s)",
    )  # fmt: skip
    fleet.add_argument(
        "--profile", default=usual.profile, metavar="NAME|FILE",
        help=f"how fast engines are, one of {', '.join(PROFILES)}, or a file of `kvproxy fit`"
        " (default: %(default)s)",
    )  # fmt: skip
    fleet.add_argument(
        "--event-delay-ms", type=milliseconds, default=1000 * usual.event_delay_s, metavar="MS",
        help="from an engine's step until its KV events are in the index (default: %(default)g)",
    )  # fmt: skip
    fleet.add_argument(
        "--unknown-share", type=share, default=usual.unknown_share, metavar="SHARE",
        help="the share of prompts whose tokens the router does not know (default: %(default)g)",
    )  # fmt: skip
    add_bypass(fleet)
    fleet.add_argument(
        "--routers", type=count, default=usual.routers, metavar="COUNT",
        help="so many kvproxies, each of which sees a share of the requests (default: %(default)s)",
    )  # fmt: skip
    fleet.add_argument(
        "--instance-speed", nargs="+", action="extend", default=[], metavar="NAME=FACTOR",
        help="an instance that is so many times as fast as the others: b0=0.5, p3=2",
    )  # fmt: skip
    fleet.add_argument(
        "--outage", nargs="+", action="extend", default=[], metavar="NAME=AT+DOWN",
        help="an instance that dies at that second, and is back with an empty cache after so many: d1=600+30",
    )  # fmt: skip
    traffic.add_argument(
        "--speed", default="1", metavar="FACTORS",
        help="how many times as fast requests come, and sessions begin; several with commas"
        " (default: %(default)s)",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument(
        "--ttft-ms", type=milliseconds, default=usual.goals.ttft_ms, metavar="MS",
        help="a request is good if its first token came by then (default: %(default)g) ...",
    )  # fmt: skip
    output.add_argument(
        "--tpot-ms", type=milliseconds, default=usual.goals.tpot_ms, metavar="MS",
        help="... and each further one took no more than this in the mean (default: %(default)g)",
    )  # fmt: skip
    output.add_argument(
        "--out", type=pathlib.Path, metavar="DIR",
        help=f"write all figures to DIR/{FIGURES}, and a page with plots to DIR/{REPORT}",
    )  # fmt: skip


def add_traffic(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Add what says which traffic there is, for `workload_of`; a run's seed is among it."""
    parser.add_argument(
        "traces",
        nargs="+",
        metavar="TRACE",
        help="files or folders of traffic (Mooncake, aiperf, Azure, BurstGPT, sessions of agents; plain or"
        f" gzip), or one generator ({', '.join(GENERATORS)}) with figures that are not as usual:"
        " unrelated:per_s=8,duration_s=300",
    )
    traffic = parser.add_argument_group("what is asked")
    traffic.add_argument(
        "--spread", action="store_true",
        help="requests that were written down with one timestamp come spread until the next one",
    )  # fmt: skip
    traffic.add_argument("--limit", type=count, metavar="COUNT", help="read no more requests than this")
    traffic.add_argument(
        "--seed", type=_seed, default=Setup().seed, metavar="NUMBER",
        help="what a run draws at random, and a generator whose figures have no seed, is drawn by this"
        " (default: %(default)s)",
    )  # fmt: skip
    return traffic


def add_bypass(group: "argparse._ArgumentGroup") -> None:
    """Add `--bypass`, as `kvproxy serve` has it."""
    group.add_argument(
        "--bypass", type=_bypass, default=Setup().bypass_tokens, metavar=BYPASS.setting.unit,
        help="which requests decode instances serve whole, as for kvproxy serve (default: auto)",
    )  # fmt: skip


def _simulate(given: argparse.Namespace) -> None:
    setups = _setups(given)
    workload = workload_of(given)
    if given.out is not None:
        make_folder(given.out)
    cells: list[Cell] = []
    print(f"{workload.name}: {len(workload.requests)} requests, {workload.source}", flush=True)
    try:
        for cell in cells_of(workload, setups, _Shown):
            cells.append(cell)  # noqa: PERF402  # extend() need not keep what came before an error
    finally:  # if Ctrl-C or a mistake in a policy ends it, runs that are finished are told
        _tell(given, Comparison(workload.name, workload.source, setups[0], cells, len(setups)))


def _tell(given: argparse.Namespace, comparison: Comparison) -> None:
    """Write and print the runs that are finished."""
    cells = comparison.cells
    _Shown.wipe()
    if not cells:
        return
    try:
        if given.out is not None:
            figures = msgspec.json.format(msgspec.json.encode(comparison), indent=1)
            write_files(given.out, {FIGURES: figures, REPORT: page_of(comparison).encode()})
    finally:  # what was found is told also if the disk is full
        print(as_table(cells))
        if unserved := sum(cell.figures.refused + cell.figures.failed for cell in cells):
            print(f"{unserved} requests were not served: see `refused` and `failed` in {FIGURES} (--out)")
        if len(cells) < comparison.runs:
            print(f"{comparison.runs - len(cells)} of {comparison.runs} runs were not finished")


def workload_of(given: argparse.Namespace) -> Workload:
    """The traffic that is named on the command line. Raises ConfigError or TraceError."""
    names: list[str] = given.traces
    if len(names) == 1 and names[0].partition(":")[0] in GENERATORS and not _is_there(names[0]):
        if given.limit is not None:
            raise ConfigError("--limit is for files: a generator has figures of its own")
        workload = generator(names[0], given.seed).generate()
    else:
        workload = read([pathlib.Path(name) for name in names], limit=given.limit)
    return spread(workload, given.seed) if given.spread else workload


def _is_there(name: str) -> bool:
    try:
        return pathlib.Path(name).exists()
    except (OSError, ValueError):  # too long for a name, or no text for one
        return False


def _setups(given: argparse.Namespace) -> list[Setup]:
    named = listed("--policy", given.policy)
    policies = list(
        dict.fromkeys(
            itertools.chain.from_iterable(
                names_of_policies() if policy == "all" else [policy] for policy in named
            )
        )
    )
    common = Setup(
        profile=given.profile,
        seed=given.seed,
        event_delay_s=given.event_delay_ms / 1000,
        unknown_share=given.unknown_share,
        bypass_tokens=given.bypass,
        routers=given.routers,
        speeds=dict(_named("--instance-speed", words, _factor) for words in given.instance_speed),
        outages=[
            Outage(name, *times)
            for name, times in (_named("--outage", words, _times) for words in given.outage)
        ],
        goals=Goals(given.ttft_ms, given.tpot_ms),
    )
    setups = [
        msgspec.structs.replace(common, fleet=fleet, speed=speed, policy=policy)
        for fleet, speed, policy in itertools.product(
            listed("--fleet", given.fleet), map(_speed, listed("--speed", given.speed)), policies
        )
    ]
    for policy in policies:
        named_policy(policy)
    for setup in setups:
        setup.check()
    return setups


def make_folder(out: pathlib.Path) -> None:
    """Make the folder of `--out`. Raises ConfigError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None


def write_files(out: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Write files by their names into the folder of `--out`. Raises ConfigError."""
    try:
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None


class _Shown:
    """Progress on a terminal, in one line that is written anew; nothing where stderr is none."""

    def __init__(self, setup: Setup) -> None:
        self._what = f"{setup.fleet} {setup.policy} at {setup.speed:g}"
        self._last_s = -math.inf

    def __call__(self, over: int, of: int, at_s: float) -> None:
        if not sys.stderr.isatty():
            return
        now_s = time.monotonic()
        if over == of:
            self.wipe()
        elif now_s - self._last_s >= SHOWN_EVERY_S:
            self._last_s = now_s
            words = f"{self._what}: {over} of {of} requests, {at_s:.0f} s"
            print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)

    @staticmethod
    def wipe() -> None:
        """Take the line away."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def listed(flag: str, text: str) -> Sequence[str]:
    """The words of a flag between its commas, each once. Raises ConfigError."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ConfigError(f"{flag} {text!r}: a word is missing between two commas")
    return list(dict.fromkeys(words))


def _named(flag: str, words: str, value: Callable[[str], T]) -> tuple[str, T]:
    """The address and the value of NAME=VALUE. Raises ConfigError."""
    name, _, text = words.partition("=")
    try:
        return f"{name}:1", value(text)
    except ValueError:
        raise ConfigError(f"{flag} {words!r}: NAME=VALUE is needed, as --help has it") from None


def _bypass(text: str) -> int | None:
    try:
        tokens: int | None = BYPASS.read_word(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return tokens


def _factor(text: str) -> float:
    return float(text)


def _times(text: str) -> tuple[float, float]:
    at_s, down_s = map(float, text.split("+"))
    if not (0 <= at_s < math.inf and 0 <= down_s < math.inf):
        raise ValueError(text)
    return at_s, down_s


def number(text: str, least: float, most: float) -> float:
    """A number of a flag from `least` to `most`."""
    try:
        found = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: a number is needed") from None
    if not least <= found <= most:
        raise argparse.ArgumentTypeError(f"{text}: not from {least:g} to {most:g}")
    return found


def whole_number(text: str, least: int, most: int) -> int:
    """A whole number of a flag from `least` to `most`."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number is needed") from None
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text}: not from {least} to {most}")
    return number


def milliseconds(text: str) -> float:
    """Milliseconds of a flag."""
    return number(text, 0.0, 1e9)


def share(text: str) -> float:
    """A share of a flag."""
    return number(text, 0.0, 1.0)


def count(text: str) -> int:
    """A number of things of a flag."""
    return whole_number(text, 1, 10**9)


def _seed(text: str) -> int:
    return whole_number(text, 0, MOST_SEED)


def _speed(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--speed {text!r}: a number is needed") from None
