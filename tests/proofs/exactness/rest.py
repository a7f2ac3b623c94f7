"""Requests one by one, each compared with the engines' own counters: nothing runs beside them, so nothing may
differ."""

import time

from scripts.workshop.live.explaining import explain
from scripts.workshop.live.metrics import read_metrics
from scripts.workshop.live.waiting import wait_until
from tests.proofs.exactness import verdict as v
from tests.proofs.exactness.course import Phase
from tests.proofs.exactness.legs import Crowd
from tests.proofs.exactness.prompts import Prompts
from tests.proofs.exactness.stage import Stage

_COUNTED_S = 20.0


async def rest(stage: Stage) -> None:
    """Requests one by one, each compared with the engines' own counters."""
    for name in stage.crowds:
        await stage.rests(name)
    async with stage.phase(Phase.QUIET):
        for name, crowd in stage.crowds.items():
            prompts = Prompts(f"{name} alone", stage.options.seed)
            for _ in range(stage.options.quiet_requests // len(stage.crowds)):
                await _alone(stage, crowd, prompts)
        for name in stage.crowds:
            await _explained(stage, name)


async def _explained(stage: Stage, name: str) -> None:
    """What a kvproxy knows of each engine, whether it would go there or not."""
    for plan in Prompts(name, stage.options.seed).hot():
        told = await explain(stage.session, stage.routers[name], plan.body)
        for spec in stage.prefill:
            terms = told.candidate(spec.address)
            if (asked := await stage.asked(plan, spec.address)) is None:
                stage.made.wrong.append(f"{spec.name} does not tell the tokens of a prompt ({plan.kind})")
                continue
            now = time.time()
            lengths = frozenset(stage.witness[spec.address].lengths(asked, now, now))
            stage.made.told.append(
                v.Told(name, plan.kind, spec.address, terms["index"], terms["cached_tokens"], lengths)
            )


async def _alone(stage: Stage, crowd: Crowd, prompts: Prompts) -> None:
    before = await _counters(stage)
    leg = await crowd.one(prompts)

    async def counted() -> bool:
        """The engine has counted the whole prompt as asked for."""
        now = await _counters(stage)
        return now.get(leg.prefill, (0, 0))[1] >= before.get(leg.prefill, (0, 0))[1] + leg.prompt_tokens

    try:
        if leg.served:
            await wait_until(counted, _COUNTED_S, "the engine counts the request")
    except TimeoutError as error:
        stage.made.wrong.append(str(error))
    now = await _counters(stage)
    stage.made.quiet.append(
        v.QuietLeg(leg, {address: now[address][0] - before[address][0] for address in now})
    )


async def _counters(stage: Stage) -> dict[str, tuple[int, int]]:
    """Cached tokens and all tokens that each prefill engine counted."""
    found = {}
    for spec in stage.prefill:
        page = await read_metrics(stage.session, spec.url)
        hits = page.total("vllm:prefix_cache_hits_total")
        found[spec.address] = int(hits), int(page.total("vllm:prefix_cache_queries_total"))
    return found
