"""A request goes only where its context fits, and is refused at once if no instance can hold it."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from proxy.config import Admission, WhenNoPrefill
from proxy.fleet import Status
from proxy.phases import Role
from proxy.simulation import StandIn, StandInConfig
from proxy.tasks import TaskOwner
from tests.helpers.service import Engines, Pair, kvproxy, wait_until

# -- engines -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def engines(*lengths: tuple[Role, int], **settings: Any) -> AsyncIterator[Pair]:
    """Stand-ins with these contexts, and a kvproxy before them."""
    async with contextlib.AsyncExitStack() as stack:
        made = {role: [] for role in Role}  # type: dict[Role, list[StandIn]]
        for role, length in lengths:
            stand_in = StandIn(StandInConfig(max_model_len=length))
            made[role].append(await stack.enter_async_context(stand_in))
        group = Engines(made[Role.PREFILL], made[Role.DECODE], made[Role.BOTH])
        yield Pair(group, await stack.enter_async_context(kvproxy(group.config(**settings))))


def legs(engine: StandIn) -> int:
    return sum(seen.path == "/v1/completions" for seen in engine.seen)


LONG = list(range(100, 1100))


async def test_a_request_goes_where_it_fits_and_explain_says_why_nowhere_else() -> None:
    short, long = 512, 4096
    async with engines(
        (Role.PREFILL, short),
        (Role.PREFILL, long),
        (Role.DECODE, short),
        (Role.DECODE, long),
        policy="round_robin",
        decision_headers=True,
    ) as pair:
        (short_p, long_p), (short_d, long_d) = pair.engines.prefill, pair.engines.decode
        for n in range(4):
            answer = await pair.service.complete([*LONG, n], max_tokens=8)
            assert answer.status == 200
            assert answer.headers["X-Kvproxy-Prefill"] == long_p.address
            assert answer.headers["X-Kvproxy-Decode"] == long_d.address
            # The answer needs room at the decode instance alone.
            answer = await pair.service.complete(LONG[:100], max_tokens=1000)
            assert answer.json["usage"]["completion_tokens"] == 1000
        assert legs(short_d) == 0
        assert legs(short_p) > 0
        explained = await pair.service.explain({"prompt": LONG, "max_tokens": 8})
        for phase, engine in (("prefill", short_p), ("decode", short_d)):
            whys = {c["instance"]: c["why"] for c in explained[phase]["candidates"]}
            assert whys[engine.address] == "too long for it"


async def test_a_request_that_fits_nowhere_is_refused_in_the_engines_words_before_any_prefill() -> None:
    async with engines((Role.PREFILL, 4096), (Role.DECODE, 512)) as pair:
        (card,) = (await pair.service.ask("/v1/models")).json["data"]
        assert card["max_model_len"] == 512
        shown = (await pair.service.ask("/status")).json["instances"]
        assert [instance["max_model_len"] for instance in shown] == [4096, 512]
        (decode,) = pair.engines.decode
        for body in (
            {"prompt": LONG, "max_tokens": 4},
            {"prompt": LONG[:512], "max_tokens": 4},
            {"prompt": LONG[:9], "max_tokens": 513},
        ):
            refused = await pair.service.ask("/v1/completions", {"model": "tiny"} | body)
            async with pair.service.session.post(
                f"{decode.url}/v1/completions", json={"model": "tiny"} | body
            ) as own:
                assert (refused.status, refused.json) == (own.status, await own.json())
            assert refused.status == 400
        chat = await pair.service.chat("hi", max_tokens=7, max_completion_tokens=600)
        assert chat.json["error"]["param"] == "max_completion_tokens"
        assert (
            await pair.service.complete(LONG[:512], truncate_prompt_tokens=500, truncation_side="left")
        ).status == 200
        assert await pair.service.metric("kvproxy_refused_requests_total", reason="too_long") == 4
        assert legs(pair.engines.prefill[0]) == 1
        assert not pair.engines.holds


async def test_a_request_that_only_a_decode_instance_holds_is_served_by_it_where_that_is_allowed() -> None:
    alone = Admission(when_no_prefill=WhenNoPrefill.DECODE)
    async with engines((Role.PREFILL, 512), (Role.DECODE, 4096), admission=alone) as pair:
        assert (await pair.service.ask("/v1/models")).json["data"][0]["max_model_len"] == 4096
        assert (await pair.service.complete(LONG)).status == 200
        assert legs(pair.engines.prefill[0]) == 0


async def test_a_request_waits_for_the_one_that_holds_it_and_holds_up_no_shorter_one() -> None:
    async with engines((Role.PREFILL, 4096), (Role.DECODE, 512), (Role.DECODE, 4096)) as pair:
        _, long = pair.engines.decode
        await long.refuse()
        instance = pair.service.fleet.get(long.address)
        assert instance is not None
        await wait_until(lambda: instance.status is Status.DOWN, "its death")
        tasks = TaskOwner("clients")
        waiting = tasks.create(pair.service.complete(LONG), name="long")
        await wait_until(lambda: len(pair.service.gate) == 1, "its wait")
        assert (await pair.service.complete(LONG[:50])).status == 200
        assert not waiting.done()
        await long.accept()
        assert (await waiting).status == 200
