"""A request that a decode instance serves whole is answered like any other, gives back all that it took
wherever it fails, and has two legs where that fails or does not apply.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvevents import Prompt, Slot
from proxy.config import Admission, Deadlines, Retries
from proxy.connectors.shared import SharedConnector
from proxy.edge.app_keys import SERVICE
from proxy.happenings import Happening, LegEnded, RequestEnded
from proxy.phases import Phase
from proxy.scheduling.policies import LeastMs, RoundRobin
from proxy.scheduling.types import View
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.additions.test_a_connector import Rendezvous
from tests.helpers.service import Pair, ask, engines, fleet, kvproxy, prose, wait_until
from tests.promises.test_stream_errors import EVENT, posted
from tests.promises.test_truth import accuracy
from tests.promises.test_warm_settings import exchange

PATH = "/v1/completions"
SHORT, LONG = list(range(300, 380)), list(range(500, 800))
TOKENS = 100
"""What --bypass says here."""


def legs(engine: StandIn) -> int:
    """Generating requests that an engine has seen, releases left out."""
    return sum(1 for s in engine.seen if s.path.startswith("/v1/c") and b"kvproxy-release" not in s.body)


def counts(pair: Pair) -> tuple[list[int], list[int]]:
    return [legs(e) for e in pair.engines.prefill], [legs(e) for e in pair.engines.decode]


async def bypassed(pair: Pair, **labels: str) -> float:
    return await pair.service.metric("kvproxy_bypassed_requests_total", **labels)


async def heard(pair: Pair, address: str) -> None:
    """Until the index knows that an engine has the long prompt."""
    index, slot = pair.service.app[SERVICE].index, Slot(address, 0, "GPU")
    await wait_until(
        lambda: index.match(Prompt(LONG)).get(slot, 0) >= len(LONG) // 16 * 16, "the events of the prompt"
    )


async def nothing_is_left(pair: Pair) -> None:
    """No claim, no leg, no hold, no work, and no block that is awaited."""
    await pair.service.settled()
    for instance in pair.service.fleet:
        for load in instance.load._all():
            assert (load.legs, load.tokens, load.weight_tokens, load.prefill_tokens) == (0, 0, 0, 0)
    await wait_until(lambda: not pair.engines.holds, "the end of all holds")
    assert pair.service.app[SERVICE].placement._predicted.legs == 0
    await wait_until(lambda: not any(engine.model.unfinished for engine in pair.engines.all), "idle engines")


class Heard:
    """Keeps what it is told of requests and legs."""

    hears = (RequestEnded, LegEnded)

    def __init__(self) -> None:
        self.requests: list[RequestEnded] = []
        self.legs: list[LegEnded] = []

    def hear(self, happening: Happening) -> None:
        match happening:
            case RequestEnded():
                self.requests.append(happening)
            case LegEnded():
                self.legs.append(happening)


# -- what is answered ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_are_those_of_a_plain_engine(stream: bool) -> None:
    async with fleet(2, 2, bypass_tokens=TOKENS, decision_headers=True) as pair, engines(0, 0, 1) as plain:
        url = plain.both[0].url
        for n in range(4):
            prompt = [n, *SHORT]
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": stream}
            expected = await ask(pair.service.session, url, PATH, body)
            answer = await pair.service.complete(prompt, stream=stream)
            assert (answer.status, answer.text) == (200, expected.text)
            assert answer.headers["X-Kvproxy-Prefill"] == answer.headers["X-Kvproxy-Decode"]
            chat = {"model": "tiny", "messages": [{"role": "user", "content": prose(20, n)}], "max_tokens": 8}
            expected = await ask(
                pair.service.session, url, "/v1/chat/completions", chat | {"temperature": 0, "stream": stream}
            )
            answer = await pair.service.chat(prose(20, n), stream=stream)
            assert (answer.status, answer.text) == (200, expected.text)
        prefill, decode = counts(pair)
        assert (prefill, sum(decode)) == ([0, 0], 8)
        assert all(b"kv_transfer_params" not in s.body for e in pair.engines.decode for s in e.seen)
        assert await bypassed(pair, reason="short") == await bypassed(pair) == 8
        assert await pair.service.metric("kvproxy_requests_total", outcome="ok") == 8
        await nothing_is_left(pair)


async def test_what_is_cached_on_a_decode_instance_counts_and_is_reported_right() -> None:
    async with fleet(1, 2, bypass_tokens=TOKENS, decision_headers=True) as pair:
        first = await pair.service.complete(LONG)
        holder = first.headers["X-Kvproxy-Decode"]
        assert first.headers["X-Kvproxy-Prefill"] == pair.engines.prefill[0].address
        await heard(pair, holder)
        told = await pair.service.explain({"model": "tiny", "prompt": LONG})
        assert told["bypass"] == "cached"
        assert told["prefill"]["chosen"] == told["decode"]["chosen"] == holder
        assert {c["instance"]: c["why"] for c in told["decode"]["candidates"]} == {
            engine.address: None if engine.address == holder else "more to compute"
            for engine in pair.engines.decode
        }
        for asked in (LONG, [*LONG, *range(50)]):
            again = await pair.service.complete(asked)
            assert again.headers["X-Kvproxy-Prefill"] == again.headers["X-Kvproxy-Decode"] == holder
            cached = again.json["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert cached >= len(LONG) // 16 * 16 - 16
            assert again.headers["X-Kvproxy-Cached-Tokens"] == str(cached)
        other = await pair.service.complete([*LONG[:150], *LONG[:150]])
        assert other.headers["X-Kvproxy-Prefill"] == pair.engines.prefill[0].address
        assert counts(pair)[0] == [2]
        assert await bypassed(pair, instance=holder, reason="cached") == await bypassed(pair) == 2
        await nothing_is_left(pair)


async def test_the_truth_meter_compares_the_leg_that_computes() -> None:
    async with fleet(1, 1, bypass_tokens=TOKENS) as pair:
        (decode,) = pair.engines.decode
        for n in range(3):
            assert (await pair.service.complete([n, *SHORT])).status == 200
        told = await accuracy(pair.service, decode)
        assert (told["exact"], told["over"], told["under"]) == (3, 0, 0)
        assert (await accuracy(pair.service, pair.engines.prefill[0]))["exact"] == 0
        await pair.service.settled()


async def test_several_answers_share_one_leg_and_each_prompt_of_a_list_has_its_own() -> None:
    async with fleet(1, 2, bypass_tokens=TOKENS) as pair, engines(0, 0, 1) as plain:
        several = {"n": 3, "max_tokens": 6, "temperature": 1, "seed": 7}
        body = {"model": "tiny", "prompt": SHORT} | several
        expected = await ask(pair.service.session, plain.both[0].url, PATH, body)
        answer = await pair.service.complete(SHORT, **several)
        assert (answer.status, answer.by_choice) == (200, expected.by_choice)
        assert counts(pair)[0] == [0]
        assert sum(counts(pair)[1]) == 1
        answer = await pair.service.complete([[1, *SHORT], LONG, [2, *SHORT]])
        assert answer.status == 200
        assert len(answer.by_choice) == 3
        assert counts(pair)[0] == [1]
        assert sum(counts(pair)[1]) == 4
        assert await bypassed(pair, reason="short") == 3
        await nothing_is_left(pair)


async def test_what_cannot_be_split_is_no_bypass() -> None:
    async with fleet(1, 1, bypass_tokens=TOKENS) as pair:
        assert (await pair.service.complete(SHORT, prompt_logprobs=1)).status == 200
        assert counts(pair) == ([0], [1])
        assert await bypassed(pair) == 0


@pytest.mark.parametrize("connector", [Rendezvous(), SharedConnector()])
@pytest.mark.parametrize("stream", [False, True])
async def test_under_every_plan(connector: Any, stream: bool) -> None:
    async with (
        engines(1, 1) as made,
        kvproxy(made.config(bypass_tokens=TOKENS), connector=connector) as service,
    ):
        pair = Pair(made, service)
        answer = await service.complete(SHORT, stream=stream)
        assert (answer.status, counts(pair)) == (200, ([0], [1]))
        assert await bypassed(pair, reason="short") == 1
        await nothing_is_left(pair)


# -- what is told --------------------------------------------------------------------------------------------


async def test_it_is_told_as_one_leg_of_one_instance(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heard = Heard()
    async with fleet(1, 1, bypass_tokens=TOKENS, consumers=[heard]) as pair:
        (decode,) = pair.engines.decode
        assert (await pair.service.complete(SHORT)).status == 200
        await pair.service.settled()
        await wait_until(lambda: bool(heard.requests), "the end of the request")
        (request,), (leg,) = heard.requests, heard.legs
        assert (request.prefill, request.decode, request.bypass) == (decode.address, decode.address, "short")
        assert (request.cached_tokens, request.prompt_tokens, request.attempts) == (0, len(SHORT), 1)
        assert (leg.phase, leg.instance, leg.uncached) == (Phase.DECODE, decode.address, len(SHORT))
        (line,) = [m for m in caplog.messages if f"POST {PATH} " in m]
        notes = dict(re.findall(r"(\w+)=(\S+)", line))
        assert notes["bypass"] == "short"
        assert notes["prefill"] == notes["decode"] == decode.address
        assert (await pair.service.ask("/status")).json["bypass_tokens"] == TOKENS
        caplog.clear()
        assert (await pair.service.complete(LONG)).status == 200
        await wait_until(lambda: len(heard.requests) == 2, "the end of the request")
        assert heard.requests[1].bypass is None
        (line,) = [m for m in caplog.messages if f"POST {PATH} " in m]
        assert "bypass" not in line


async def test_it_is_work_of_prefill_and_of_decode_until_its_first_token() -> None:
    hangs = Fault(kind="hang", path=PATH, times=1)
    stalls = Fault(kind="stall", path=PATH, after_bytes=1500, times=1)
    async with fleet(1, 1, bypass_tokens=TOKENS) as pair:
        (engine,) = pair.engines.decode
        engine.faults.add(hangs)
        engine.faults.add(stalls)
        instance = pair.service.fleet.get(engine.address)
        assert instance is not None
        load = instance.load.on(Phase.DECODE, 0)

        def is_counted(*wanted: int) -> bool:
            return (load.prefill_tokens, load.decode_tokens, load.legs) == wanted

        asked = asyncio.get_running_loop().create_task(
            pair.service.complete(SHORT, stream=True, max_tokens=200)
        )
        await wait_until(lambda: is_counted(80, 80, 1), "its claim")
        assert pair.service.app[SERVICE].placement._predicted.any(engine.address, 0)
        assert load.weight_tokens == 80 + 200
        await wait_until(lambda: hangs not in engine.faults.active(), "the leg")
        engine.faults.release()
        assert (await asked).status == 200
        following = asyncio.get_running_loop().create_task(
            pair.service.complete(SHORT[::-1], stream=True, max_tokens=200)
        )
        await wait_until(lambda: is_counted(0, 80, 1), "its stream")
        following.cancel()
        await nothing_is_left(pair)


# -- what bounds it ------------------------------------------------------------------------------------------


async def test_the_next_request_obeys_another_bypass() -> None:
    async with fleet(1, 1, policy=RoundRobin()) as pair:
        for number, (tokens, prefill_legs) in enumerate(((None, 1), (0, 2), (80, 2), (79, 3))):
            exchange(pair, bypass_tokens=tokens)
            assert (await pair.service.complete([number, *SHORT[1:]])).status == 200
            assert counts(pair)[0] == [prefill_legs], f"--bypass {tokens}"
        assert await bypassed(pair) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_without_prefill_instances_it_is_served_and_a_long_one_waits(stream: bool) -> None:
    limits = Admission(queue_timeout_s=0.2)
    async with fleet(1, 1, bypass_tokens=TOKENS, admission=limits) as pair:
        await pair.service.admin("/instances/drain", {"instance": pair.engines.prefill[0].address})
        assert (await pair.service.complete(SHORT, stream=stream)).status == 200
        assert await pair.service.metric("kvproxy_no_prefill_total") == 0
        assert (await pair.service.complete(LONG)).status == 503
        assert await pair.service.metric("kvproxy_no_prefill_total", action="wait") == 1


async def test_a_decode_instance_that_drains_gets_none() -> None:
    async with fleet(1, 2, bypass_tokens=TOKENS) as pair:
        first, second = pair.engines.decode
        await pair.service.admin("/instances/drain", {"instance": first.address})
        for n in range(3):
            assert (await pair.service.complete([n, *SHORT])).status == 200
        assert counts(pair) == ([0], [0, 3])
        assert second.address != first.address


# -- what fails ----------------------------------------------------------------------------------------------

FAULTS = [
    pytest.param(Fault(kind="status", path=PATH, status=500, times=1), "status", id="an error"),
    pytest.param(Fault(kind="status", path=PATH, status=503, times=1), "full", id="full"),
    pytest.param(Fault(kind="cut", path=PATH, times=1), "broken", id="cut before its head"),
    pytest.param(Fault(kind="hang", path=PATH, times=1), "deadline", id="no head in time"),
    pytest.param(Fault(kind="error", path=PATH, status=500, times=1), "status", id="an error that begins it"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "reason"), FAULTS)
async def test_a_leg_that_fails_is_tried_on_another_decode_instance(
    fault: Fault, reason: str, stream: bool
) -> None:
    async with fleet(1, 2, bypass_tokens=TOKENS, deadlines=Deadlines(first_byte_s=1.0)) as pair:
        expected = (await pair.service.complete(SHORT)).text
        first, second = pair.engines.decode
        before = [legs(first), legs(second)]
        second.faults.add(fault)
        with pair.service.fleet.claim(first.address, 0, Phase.DECODE, 5000):
            answer = await pair.service.complete(SHORT[::-1], stream=stream)
            assert answer.status == 200
        assert [legs(first), legs(second)] == [before[0] + 1, before[1] + 1]
        assert counts(pair)[0] == [0]
        assert await pair.service.metric("kvproxy_retries_total", phase="decode", reason=reason) == 1
        assert (await pair.service.complete(SHORT)).text == expected
        await nothing_is_left(pair)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "reason"), [each for each in FAULTS if each.values[1] != "full"])
async def test_where_no_other_decode_instance_is_it_has_two_legs(
    fault: Fault, reason: str, stream: bool
) -> None:
    async with fleet(1, 1, bypass_tokens=TOKENS, deadlines=Deadlines(first_byte_s=1.0)) as pair:
        pair.engines.decode[0].faults.add(fault)
        answer = await pair.service.complete(SHORT, stream=stream)
        assert answer.status == 200
        assert counts(pair) == ([1], [2])
        assert await bypassed(pair) == 1
        assert await pair.service.metric("kvproxy_retries_total", phase="decode", reason=reason) == 1
        await nothing_is_left(pair)


async def test_a_decode_instance_that_is_gone_is_left_at_once() -> None:
    async with fleet(1, 2, bypass_tokens=TOKENS, retries=Retries(budget=0.0)) as pair:
        first, second = pair.engines.decode
        with pair.service.fleet.claim(second.address, 0, Phase.DECODE, 5000):
            await first.refuse()
            assert (await pair.service.complete(SHORT)).status == 200
        assert counts(pair) == ([0], [0, 1])
        await nothing_is_left(pair)


@pytest.mark.parametrize("status", [400, 422])
async def test_the_clients_own_mistake_is_answered_in_the_engines_words(status: int) -> None:
    async with fleet(1, 2, bypass_tokens=TOKENS) as pair:
        for engine in pair.engines.decode:
            engine.faults.add(Fault(kind="status", path=PATH, status=status))
        assert (await pair.service.complete(SHORT)).status == status
        assert sum(counts(pair)[1]) == 1
        await nothing_is_left(pair)


async def test_a_stream_that_breaks_after_its_beginning_is_cut_with_an_error() -> None:
    async with fleet(1, 1, bypass_tokens=TOKENS) as pair:
        pair.engines.decode[0].faults.add(Fault(kind="error", path=PATH, status=500, after_chunks=3, times=1))
        data = await posted(pair, PATH, {"model": "tiny", "prompt": SHORT, "max_tokens": 20, "stream": True})
        assert data.startswith(b"HTTP/1.1 200")
        assert data.count(EVENT) == 1
        assert b"[DONE]" not in data
        assert counts(pair) == ([0], [1])
        assert await pair.service.metric("kvproxy_requests_total", outcome="cut") == 1
        await nothing_is_left(pair)


PHASES = [
    pytest.param(Fault(kind="hang", path=PATH), id="before the head"),
    pytest.param(Fault(kind="stall", path=PATH), id="before the first byte"),
    pytest.param(Fault(kind="stall", path=PATH, after_bytes=1500), id="within the stream"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", PHASES)
async def test_a_client_that_leaves_takes_everything_along(fault: Fault, stream: bool) -> None:
    async with fleet(1, 1, bypass_tokens=TOKENS) as pair:
        (engine,) = pair.engines.decode
        engine.faults.add(fault)
        for n in range(3):
            asked = asyncio.get_running_loop().create_task(
                pair.service.complete([n, *SHORT], stream=stream, max_tokens=200)
            )
            await wait_until(lambda n=n: legs(engine) == n + 1, "its leg")  # type: ignore[misc]  # a default
            asked.cancel()
        await nothing_is_left(pair)
        assert counts(pair)[0] == [0]
        engine.faults.clear()
        assert (await pair.service.complete(SHORT)).status == 200
        assert await pair.service.metric("kvproxy_requests_total", outcome="client_left") == 3


# -- a policy that weighs it ---------------------------------------------------------------------------------


class ShortOnesAlone:
    """A token computed beside streams costs as much as two others, and a transfer as much as 200."""

    unit = "tokens"
    weighs_bypass = True

    def prices(self, view: View) -> list[float]:
        """As `Policy`."""
        return [
            (p.uncached_tokens or 0) * (2 if pair.one_leg else 1) + (0 if pair.one_leg else 200)
            for pair in view.pairs
            for p in (pair.prefill,)
        ]


@pytest.fixture
async def weighing() -> AsyncIterator[Pair]:
    async with fleet(1, 2, policy=ShortOnesAlone(), decision_headers=True) as pair:
        yield pair


async def test_a_policy_decides_by_its_price(weighing: Pair) -> None:
    pair = weighing
    told = await pair.service.explain({"model": "tiny", "prompt": SHORT})
    assert told["bypass"] == "policy"
    assert [(p["prefill"] == p["decode"], p["cost"]) for p in told["pairs"]] == [
        (True, 160.0),
        (True, 160.0),
        (False, 280.0),
        (False, 280.0),
    ]
    assert (await pair.service.complete(SHORT)).status == 200
    assert counts(pair)[0] == [0]
    first = await pair.service.complete(LONG)
    prefill, decode = first.headers["X-Kvproxy-Prefill"], first.headers["X-Kvproxy-Decode"]
    assert prefill == pair.engines.prefill[0].address
    await heard(pair, prefill)
    await heard(pair, decode)
    again = await pair.service.complete(LONG)
    assert again.headers["X-Kvproxy-Prefill"] == again.headers["X-Kvproxy-Decode"] == decode
    assert await bypassed(pair, reason="policy") == await bypassed(pair) == 2
    await nothing_is_left(pair)


@pytest.mark.parametrize("stream", [False, True])
async def test_predicted_milliseconds_spare_an_idle_fleet_the_transfer(stream: bool) -> None:
    async with fleet(2, 2, policy=LeastMs()) as pair:
        for number in range(3):
            assert (await pair.service.complete([number, *SHORT], stream=stream)).status == 200
            await nothing_is_left(pair)
        assert counts(pair)[0] == [0, 0]
        assert await bypassed(pair, reason="policy") == 3
        exchange(pair, bypass_tokens=0)
        assert (await pair.service.complete(LONG, stream=stream)).status == 200
        assert sum(counts(pair)[0]) == 1
        assert await bypassed(pair) == 3


async def test_a_prefill_leg_that_fails_may_be_followed_by_one_leg() -> None:
    class Changing(ShortOnesAlone):
        alone = False

        def prices(self, view: View) -> list[float]:
            return [float(pair.one_leg is not self.alone) for pair in view.pairs]

    policy = Changing()
    async with fleet(1, 1, policy=policy, deadlines=Deadlines(prefill_s=1.0)) as pair:
        (prefill,) = pair.engines.prefill
        prefill.faults.add(Fault(kind="hang", path=PATH, times=1))
        asked = asyncio.get_running_loop().create_task(pair.service.complete(SHORT))
        await wait_until(lambda: legs(prefill) == 1, "a prefill leg")
        policy.alone = True
        assert (await asked).status == 200
        assert counts(pair) == ([1], [1])
        assert await bypassed(pair, reason="policy") == 1
        await nothing_is_left(pair)
