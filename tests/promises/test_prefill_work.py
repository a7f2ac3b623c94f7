"""A prompt is work of prefill until its first token or its answer, whatever becomes of the request; a running
stream is none.
"""

import asyncio
from typing import Any

import pytest

from proxy.phases import Phase
from proxy.scheduling.policies import LeastMs
from proxy.simulation.live.faults import Fault
from proxy.simulation.live.stand_in import StandIn
from tests.helpers.service import Pair, fleet, wait_until

PROMPT = list(range(300, 900))
STALLS = Fault(kind="stall", path="/v1/completions", after_bytes=1500, times=1)
LATER = 1e9
"""A moment in seconds of the monotonic clock that is not there yet."""
HANGS = Fault(kind="hang", path="/v1/completions", times=1)


def counted(pair: Pair) -> tuple[int, int, int]:
    """Tokens to compute, contexts of streams, and legs, of all instances."""
    loads = [load for instance in pair.service.fleet for load in instance.load._all()]
    return (
        sum(load.prefill_tokens for load in loads),
        sum(load.decode_tokens for load in loads),
        sum(load.legs for load in loads),
    )


async def counts(pair: Pair, *wanted: int) -> None:
    await wait_until(lambda: counted(pair) == wanted, f"{wanted} to be counted")


async def release(engine: StandIn) -> None:
    """Have what hangs answered, once it is there."""
    await wait_until(lambda: all(each.kind != "hang" for each in engine.faults.active()), "requests to hang")
    engine.faults.release()


def ask(pair: Pair, prompt: list[int] = PROMPT, **members: Any) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(
        pair.service.complete(prompt, **{"max_tokens": 200} | members)
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_on_an_instance_that_does_both_it_is_until_the_first_token_or_the_answer(stream: bool) -> None:
    async with fleet(0, 0, 1) as pair:
        (engine,) = pair.engines.both
        engine.faults.add(HANGS)
        engine.faults.add(STALLS)
        asked = ask(pair, stream=stream)
        await counts(pair, 600, 600, 1)
        seen = (await pair.service.explain({"model": "tiny", "prompt": PROMPT}))["prefill"]["candidates"]
        assert [(c["prefill_tokens"], c["decode_tokens"], c["running_legs"]) for c in seen] == [(600, 600, 1)]
        assert await pair.service.metric("kvproxy_in_flight_prefill_tokens") == 600
        await release(engine)
        assert (await asked).status == 200
        await counts(pair, 0, 0, 0)

        streaming = ask(pair, PROMPT[::-1], stream=stream)
        await counts(pair, 0 if stream else 600, 600, 1)
        streaming.cancel()
        await counts(pair, 0, 0, 0)
        await pair.service.settled()


async def test_of_two_legs_it_is_until_the_prefill_answer() -> None:
    async with fleet(1, 1) as pair:
        for engine in pair.engines.all:
            engine.faults.add(HANGS)
        asked = ask(pair, stream=True)
        await counts(pair, 600, 600, 2)
        await release(pair.engines.prefill[0])
        await counts(pair, 0, 600, 1)
        await release(pair.engines.decode[0])
        assert (await asked).status == 200
        await counts(pair, 0, 0, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_grows_from_its_first_token_or_from_when_its_prompt_is_computed(stream: bool) -> None:
    async with fleet(1, 1, policy=LeastMs(), bypass_tokens=0) as pair:
        (prefill,), (decode,) = pair.engines.prefill, pair.engines.decode
        for engine in pair.engines.all:
            engine.faults.add(HANGS)
        decode.faults.add(STALLS)
        asked = ask(pair, stream=stream)
        await wait_until(lambda: not prefill.faults.active(), "the prefill leg")
        instance = pair.service.fleet.get(decode.address)
        assert instance is not None
        work = instance.load.on(Phase.DECODE, 0).work
        assert (work.streams, work.generated_s(LATER)) == (1, 0)
        await release(prefill)
        await wait_until(
            lambda: all(each.kind != "hang" for each in decode.faults.active()), "the decode leg"
        )
        assert bool(work.generated_s(LATER)) is not stream
        await release(decode)
        await wait_until(lambda: work.generated_s(LATER) > 0 or not work.streams, "the first token")
        asked.cancel()
        await wait_until(lambda: not work.streams, "the end")
        assert work.generated_s(LATER) == 0


async def test_a_client_that_leaves_before_takes_it_along() -> None:
    async with fleet(0, 0, 1) as pair:
        pair.engines.both[0].faults.add(HANGS)
        asked = ask(pair, stream=True)
        await counts(pair, 600, 600, 1)
        asked.cancel()
        await counts(pair, 0, 0, 0)
        await pair.service.settled()


@pytest.mark.parametrize("kind", ["status", "cut"])
async def test_it_goes_with_the_request_when_that_is_tried_elsewhere(kind: Any) -> None:
    async with fleet(0, 0, 2) as pair:
        first, second = pair.engines.both
        first.faults.add(Fault(kind=kind, path="/v1/completions", status=500, times=1))
        second.faults.add(HANGS)
        with pair.service.fleet.claim(second.address, 0, Phase.DECODE, 1, prefill_tokens=9000):
            asked = ask(pair)
            await counts(pair, 9600, 601, 2)
            await release(second)
            assert (await asked).status == 200
            await counts(pair, 9000, 1, 1)


async def test_each_prompt_of_a_list_is_work_by_itself() -> None:
    async with fleet(1, 1) as pair:
        pair.engines.prefill[0].faults.add(Fault(kind="hang", path="/v1/completions", times=3))
        prompts = [[first, *PROMPT[1:]] for first in (1, 2, 3)]
        asked = asyncio.get_running_loop().create_task(pair.service.complete(prompts))
        await counts(pair, 1800, 1800, 6)
        await release(pair.engines.prefill[0])
        assert (await asked).status == 200
        await counts(pair, 0, 0, 0)


async def test_a_long_answer_does_not_drive_the_next_prompt_from_its_cache() -> None:
    async with fleet(0, 0, 3, decision_headers=True) as pair:
        first = await pair.service.complete(PROMPT)
        holder = first.headers["X-Kvproxy-Decode"]
        engine = next(each for each in pair.engines.both if each.address == holder)
        await pair.service.settled()
        engine.faults.add(STALLS)
        streaming = ask(pair, stream=True)
        await counts(pair, 0, 600, 1)
        told = await pair.service.explain({"model": "tiny", "prompt": [*PROMPT, 5, 6, 7]})
        assert told["prefill"]["chosen"] == holder
        streaming.cancel()
        await pair.service.settled()
