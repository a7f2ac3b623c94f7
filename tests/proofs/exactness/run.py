"""One run: mixed traffic all along, something new in each phase, then rest, and a judgement of every prefill
leg.

All of it in one process beside engines and kvproxys, so that one clock tells when what happened.
"""

import asyncio
import time
from collections.abc import Callable

import aiohttp

from scripts.workshop.engines.fleet import Fleet
from tests.proofs.exactness import setting
from tests.proofs.exactness import verdict as v
from tests.proofs.exactness.acts import traffic
from tests.proofs.exactness.course import FIRST, LATE, Options, Phase, Run
from tests.proofs.exactness.looking import Look
from tests.proofs.exactness.rest import rest
from tests.proofs.exactness.setting import Routers
from tests.proofs.exactness.stage import Stage
from tests.proofs.exactness.witness import Witness


def run(
    options: Options,
    say: Callable[[str], None] = lambda _: None,
    tell: Callable[[Run], None] = lambda _: None,
) -> Run:
    """Run it all; `tell` is called every second. Call it from the main thread (live/processes.py says
    why)."""
    wanted = setting.specs(
        prefill_tokens=options.prefill_tokens,
        decode_tokens=options.decode_tokens,
        buffer_steps=options.buffer_steps,
    )
    made = Run(options)
    with setting.engines(wanted, options.logs, real=options.real, say=say) as fleet:
        routers = Routers(fleet, options.state_interval_s)
        try:
            with Witness(fleet.of_role("prefill")) as witness:
                asyncio.run(_whole(fleet, routers, witness, made, tell))
        finally:
            routers.stop()
    return made


async def _whole(
    fleet: Fleet, routers: Routers, witness: Witness, made: Run, tell: Callable[[Run], None]
) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        stage = Stage(fleet, routers, witness, session, made)
        made.begun = time.time()
        async with asyncio.TaskGroup() as group:
            group.create_task(_tell(stage, tell), name="teller")
            try:
                await stage.join(group, FIRST)
                await traffic(stage, group)
                await rest(stage)
            finally:
                stage.over.set()
        await _judge(stage)


async def _tell(stage: Stage, tell: Callable[[Run], None]) -> None:
    while not stage.over.is_set():
        tell(stage.made)
        try:
            async with asyncio.timeout(1.0):
                await stage.over.wait()
        except TimeoutError:
            pass


async def _judge(stage: Stage) -> None:
    made, verdict = stage.made, stage.made.verdict
    for leg in made.legs:
        leg.index = stage.looks[leg.router].worth(leg.prefill, leg.begun, leg.ended)
    loud = [leg for leg in made.legs if leg.phase != Phase.QUIET]
    for leg in made.legs:
        if leg.judged and not leg.right:
            made.misses.append(
                v.explain(leg, await stage.asked(leg.plan, leg.prefill), stage.witness[leg.prefill])
            )
    calm = [leg for leg in loud if leg.phase in {Phase.MIXED, Phase.PRESSURE, Phase.RESETS}]
    verdict.add(v.EXPLAINED, [words(m, made) for m in made.misses if m.cause != "race"])
    meters = {name: looks.meter for name, looks in stage.looks.items()}
    verdict.add(v.SHARE, [*v.check_share(loud), *v.check_meter_share(meters)])
    untold = sum(looks.untold for looks in stage.looks.values())
    verdict.add(v.METERED, v.check_meter(meters, untold))
    if Phase.LATE in stage.options.phases:
        verdict.add(v.JOINED, v.check_late(stage.of(LATE), stage.options.late_requests))
    verdict.add(v.DUST, v.check_quiet(made.quiet))
    verdict.add(v.KNOWN, v.check_told(made.told))
    if last := stage.looks[FIRST].last:
        verdict.add(v.EXACT, _inexact(stage, last))
    verdict.add(v.SERVED, v.check_served(made.legs, made.kills))
    if not any(stage.witness[spec.address].removed for spec in stage.prefill):
        made.wrong.append("nothing was evicted: the caches are too large")
    verdict.add(v.HAPPENED, [*made.wrong, *v.check_judged(calm)])
    lost = [f"{spec.name} at {at:.2f}" for spec in stage.prefill for at in stage.witness[spec.address].lost]
    verdict.add(v.HEARD, lost + ([repr(stage.witness.error)] if stage.witness.error else []))


def _inexact(stage: Stage, look: Look) -> list[str]:
    return [
        f"{spec.name} ({spec.address}): {look.worth(spec.address)}"
        for spec in stage.prefill
        if look.worth(spec.address) != "exact"
    ]


def words(miss: v.Miss, made: Run) -> str:
    """All that is known of a miss."""
    leg = miss.leg
    what = f"{leg.phase}, {leg.plan.kind}, kvproxy {leg.router}, prefill {leg.prefill}, decode {leg.decode}"
    how = f"predicted {leg.predicted}, reported {leg.reported} of {leg.prompt_tokens} tokens: {miss.cause}"
    when = f"{leg.begun - made.begun:.3f} to {leg.ended - made.begun:.3f} s"
    lines = [f"{leg.id} ({what}): {how}", f"  {when}", *(f"  {told}" for told in miss.told)]
    lines += [
        f"  | {at - made.begun:.2f} s: {done}"
        for at, done in made.journal
        if leg.begun - 10 <= at <= leg.ended
    ]
    return "\n".join(lines)
