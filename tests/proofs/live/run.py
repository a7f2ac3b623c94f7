"""One run: a slice of traffic through kvproxy on sockets and in simulated time, for each fleet and policy.

Both worlds get the same engines, requests and times of arrival. What the machine adds of its own is measured
first, with engines that take no time.
"""

import asyncio
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from proxy.latency.profiles import written
from proxy.phases import Role
from proxy.scheduling.types import reads_latency
from proxy.simulation.replay.fleets import parse_fleet
from proxy.simulation.replay.run import named_policy
from proxy.traces.workload import Workload
from scripts.workshop.bench.cpu import cpu_s
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import ProxyProcess
from scripts.workshop.live.quiet import wait_quiet
from scripts.workshop.live.waiting import wait_until
from tests.proofs.live.clients import Clients, Seen, number_of
from tests.proofs.live.engines import MODEL, engines
from tests.proofs.live.scaling import Scale, scaled_prior, scaled_shape, scaled_workload
from tests.proofs.live.simulated import simulate
from tests.proofs.live.verdict import Cell, Live, judge

EVENT_DELAY_S = 0.005
"""Of simulated time: about what ZeroMQ and kvproxy's slices take."""
REST_S = 120.0
FLEETS = ("4b", "2p2d")
POLICIES = ("round_robin", "cache_affinity", "least_ms")
PROFILE = "dynamo-replay"
TOLERANCE = 0.1
_READY_S = 60.0


@dataclass(frozen=True)
class Options:
    """What is run."""

    workload: Workload
    """As it is: the scale is applied to it here."""
    logs: pathlib.Path
    fleets: Sequence[str] = FLEETS
    policies: Sequence[str] = POLICIES
    profile: str = PROFILE
    scale: Scale = field(default_factory=Scale)
    seeds: int = 8
    """Runs in simulated time."""
    alone: int = 100
    """Requests, one at a time, by which the machine's own time is measured."""
    tolerance: float = TOLERANCE


@dataclass
class Run:
    """What came of it so far."""

    options: Options
    scaled: Workload
    own: dict[str, Sequence[Seen]] = field(default_factory=dict)
    """By fleet: what clients saw of engines that take no time."""
    cells: list[Cell] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        return [words for found in judge(self.cells, self.options.tolerance).values() for words in found]


Tell = Callable[[str], None]


def run(options: Options, tell: Tell = lambda _: None) -> Run:
    """Run it all; `tell` hears what is done now. Call it from the main thread (live/processes.py says
    why)."""
    made = Run(options, scaled_workload(options.workload, options.scale))
    few = msgspec.structs.replace(
        made.scaled,
        requests=[
            msgspec.structs.replace(each, after=None) for each in made.scaled.requests[: options.alone]
        ],
    )
    for fleet in options.fleets:
        if few.requests:
            tell(f"{fleet}: {len(few.requests)} requests, one at a time, to engines that take no time")
            made.own[fleet] = _live(options, "zero", fleet, "round_robin", few, tell, one_by_one=True).seen
        for policy in options.policies:
            tell(f"{fleet} {policy}: simulated time")
            shape = scaled_shape(
                options.profile, options.scale, block_tokens=_block_tokens(options), model=MODEL
            )
            simulated = simulate(
                made.scaled,
                shape,
                scaled_prior(options.scale),
                fleet,
                policy,
                event_delay_s=EVENT_DELAY_S,
                seeds=options.seeds,
            )
            live = _live(options, options.profile, fleet, policy, made.scaled, tell)
            predicts = reads_latency(named_policy(policy))
            made.cells.append(Cell(fleet, policy, simulated, live, predicts))
    return made


def _block_tokens(options: Options) -> int:
    return options.workload.requests[0].block_tokens


def _live(
    options: Options,
    profile: str,
    fleet: str,
    policy: str,
    workload: Workload,
    tell: Tell,
    *,
    one_by_one: bool = False,
) -> Live:
    roles = [role for _, role in parse_fleet(fleet)]
    logs = options.logs / f"{fleet}-{policy}{'-alone' if one_by_one else ''}"
    logs.mkdir(parents=True)
    prior, decisions = logs / "prior.toml", logs / "decisions.jsonl"
    prior.write_text(written(scaled_prior(options.scale)))
    with engines(len(roles), profile, options.scale, _block_tokens(options), logs / "engines.log") as (
        _,
        addresses,
    ):
        by_role = {
            role: [address for address, its in zip(addresses, roles, strict=True) if its is role]
            for role in Role
        }
        [port] = free_ports(1)
        with ProxyProcess(
            port,
            logs / "kvproxy.log",
            prefill=by_role[Role.PREFILL],
            decode=by_role[Role.DECODE],
            both=by_role[Role.BOTH],
            model=MODEL,
            flags=[
                *("--policy", policy, "--latency-profile", str(prior)),
                "--decision-headers",
                *_told(policy, decisions),
            ],
        ) as proxy:
            proxy.wait_status("/ready")
            what = f"{fleet} {policy}"

            def progress(ended: int, of: int) -> None:
                tell(f"{what}: {ended} of {of} requests")

            live = asyncio.run(_clients(proxy, addresses, workload, progress, one_by_one=one_by_one))
    logged = _logged(decisions)
    numbers = range(len(workload.requests) if logged else 0)
    return dataclasses.replace(
        live,
        predicted_ms=[logged.get(number, {}).get("predicted_ttft_ms") for number in numbers],
        noticed_ms=[logged.get(number, {}).get("ttft_ms") for number in numbers],
    )


def _told(policy: str, decisions: pathlib.Path) -> list[str]:
    """Flags by which predictions are written down, of a policy that makes some: others are left in peace."""
    return ["--decision-log", str(decisions)] if reads_latency(named_policy(policy)) else []


def _logged(decisions: pathlib.Path) -> dict[int, dict[str, Any]]:
    """The decision log of a kvproxy that has ended, if there is one, by the number of the request."""
    lines = decisions.read_bytes().splitlines() if decisions.exists() else []
    return {number_of(line["request_id"]): line for line in map(msgspec.json.decode, lines)}


async def _clients(
    proxy: ProxyProcess,
    addresses: Sequence[str],
    workload: Workload,
    progress: Callable[[int, int], None],
    *,
    one_by_one: bool,
) -> Live:
    async with aiohttp.ClientSession() as session:
        await _followed(session, proxy)
        urls = [f"http://{address}" for address in addresses]
        await wait_quiet(session, urls, proxy.url, REST_S)
        before_s = cpu_s(proxy.pid)
        clients = Clients(proxy.url, workload, MODEL, tell=progress)
        seen = await (clients.one_by_one() if one_by_one else clients.all_of_it())
        after_s = cpu_s(proxy.pid)
        await wait_quiet(session, urls, proxy.url, REST_S)
    return Live(seen, after_s - before_s)


async def _followed(session: aiohttp.ClientSession, proxy: ProxyProcess) -> None:
    """Wait until kvproxy knows all caches."""

    async def exact() -> bool:
        async with session.get(f"{proxy.url}/status") as answer:
            instances = (await answer.json())["instances"]
            return all(each["index"] == "exact" for each in instances)

    await wait_until(exact, _READY_S, "the index of every engine is exact")
