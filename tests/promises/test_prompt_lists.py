"""A list of prompts gets the answer that one engine would give, whole or not at all, and leaves nothing
behind.
"""

import asyncio
import contextlib
import itertools
import random
import re
from collections import defaultdict
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.phases import Phase
from proxy.serving.lists import MAX_PROMPTS
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.helpers.service import UNHURRIED, Answer, Pair, Service, ask, fleet, prose, wait_until

PATH = "/v1/completions"


def posts(engine: StandIn) -> list[Any]:
    """The bodies of the legs an engine has seen, releases left out."""
    return [s.json() for s in engine.seen if s.path == PATH and b"kvproxy-release" not in s.body]


async def nothing_is_left(pair: Pair, *, stranded: int = 0) -> None:
    await pair.service.settled()
    await wait_until(lambda: pair.engines.holds == stranded, "the end of all holds")
    await wait_until(lambda: not any(e.model.unfinished for e in pair.engines.all), "idle engines")
    assert await pair.service.metric("kvproxy_holds_total", end="stranded") == stranded
    assert await pair.service.metric("kvproxy_in_flight_requests") == 0
    assert await pair.service.metric("kvproxy_in_flight_tokens") == 0


async def have_met(pair: Pair) -> None:
    """Let every pair transfer once: the first release between strangers takes a second or two."""
    for prefill, decode in itertools.product(pair.engines.prefill, pair.engines.decode):
        others = [engine for engine in pair.engines.all if engine not in {prefill, decode}]
        for engine in others:
            await pair.service.admin("/instances/drain", {"instance": engine.address})
        assert (await pair.service.complete("hello", max_tokens=1)).status == 200
        for engine in others:
            await pair.service.admin("/instances/drain", {"instance": engine.address, "undo": True})
    decoding = pair.service.fleet.of(Phase.DECODE)
    assert [instance.peers for instance in decoding] == [len(pair.engines.prefill)] * len(decoding)


# -- the same answer ----------------------------------------------------------------------------------------

OWN = re.compile(rb'"id":"[^"]*"|"created":\d+')
CACHED = re.compile(rb'"cached_tokens":\d+')


def comparable(answer: Answer) -> Any:
    """The bytes of an answer but for what each has of its own, a stream's by choice: their order is by
    chance.

    Nor the cached tokens: of a list an engine tells those of one prompt.
    """
    body = CACHED.sub(b"", OWN.sub(b"", answer.body))
    if not answer.streamed:
        return body
    choices: dict[bytes, list[bytes]] = defaultdict(list)
    for event in body.split(b"\n\n"):
        found = re.search(rb'"choices":\[\{"index":(\d+)', event)
        choices[found[1] if found else b"rest"].append(event)
    return choices


def ids(answer: Answer) -> set[bytes]:
    return set(OWN.findall(answer.body))


texts = st.lists(
    st.sampled_from(["hello", "a b c", "äöü 😀", '{} [] " \\ \n data: [DONE]']), min_size=2, max_size=5
)
token_lists = st.lists(st.lists(st.integers(3, 900), min_size=1, max_size=40), min_size=2, max_size=5)
bodies = st.fixed_dictionaries(
    {"prompt": texts | token_lists, "n": st.integers(1, 3), "max_tokens": st.integers(1, 6)},
    optional={
        "seed": st.integers(0, 99),
        "echo": st.booleans(),
        "logprobs": st.sampled_from([None, 0, 3]),
        "prompt_logprobs": st.sampled_from([None, 1]),
        "return_token_ids": st.booleans(),
        "stop": st.sampled_from([None, ["e"], "a"]),
        "suffix": st.sampled_from(["", None]),
        "model": st.sampled_from(["tiny", "alpha"]),
    },
)
streaming = st.fixed_dictionaries(
    {"stream": st.just(True)},
    optional={
        "stream_options": st.none()
        | st.fixed_dictionaries(
            {}, optional={"include_usage": st.booleans(), "continuous_usage_stats": st.booleans()}
        )
    },
)


def test_an_answer_is_that_of_one_engine_byte_for_byte() -> None:
    async def compare(pair: Pair, plain: StandIn, body: dict[str, Any]) -> None:
        expected = await ask(pair.service.session, plain.url, PATH, body)
        answer = await pair.service.ask(PATH, body)
        assert answer.status == expected.status
        assert comparable(answer) == comparable(expected)
        if answer.status == 200:
            assert len(ids(answer)) == 2
            assert answer.headers["Content-Type"] == expected.headers["Content-Type"]
            assert set(answer.by_choice) == set(range(len(body["prompt"]) * body["n"]))
            assert not answer.streamed or answer.body.count(b"data: [DONE]\n\n") == 1

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        pair = runner.run(stack.enter_async_context(fleet(stand_in={"loras": ("alpha",)})))
        plain = runner.run(stack.enter_async_context(StandIn(pair.engines.all[0].config)))

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(body=bodies, way=st.just({}) | streaming)
        def check(body: dict[str, Any], way: dict[str, Any]) -> None:
            runner.run(compare(pair, plain, {"temperature": 0 if body["n"] == 1 else 1} | body | way))

        try:
            check()
            runner.run(nothing_is_left(pair))
        finally:
            runner.run(stack.aclose())


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_tokens_are_those_of_all_prompts(stream: bool) -> None:
    async with fleet(prefill=1, decode=1, stand_in=UNHURRIED) as pair:
        prompts = [list(range(100, 200)), list(range(300, 350)), [7, 8, 9]]
        usage = {"stream_options": {"include_usage": True}} if stream else {}
        answers = [await pair.service.complete(prompts, stream=stream, **usage) for _ in range(2)]
        counted = [(answer.events[-2] if stream else answer.json)["usage"] for answer in answers]
        assert [u["prompt_tokens_details"]["cached_tokens"] for u in counted] == [0, 96 + 48]
        assert {u["prompt_tokens"] for u in counted} == {153}
        assert {u["completion_tokens"] for u in counted} == {24}


async def test_each_prompt_goes_where_its_prefix_is_cached() -> None:
    async with fleet(decision_headers=True, stand_in=UNHURRIED) as pair:
        holders: dict[str, list[str]] = {engine.address: [] for engine in pair.engines.prefill}
        for seed in range(40):
            if all(len(held) >= 2 for held in holders.values()):
                break
            answer = await pair.service.complete(prose(300, seed))
            holders[answer.headers["X-Kvproxy-Prefill"]].append(prose(300, seed))
        wanted = {address: held[:2] for address, held in holders.items()}
        before = {e.address: len(posts(e)) for e in pair.engines.prefill}
        answer = await pair.service.complete([prompt for held in wanted.values() for prompt in held])
        assert answer.status == 200
        assert not [name for name in answer.headers if name.lower().startswith("x-kvproxy")]
        for engine in pair.engines.prefill:
            came = [body["prompt"] for body in posts(engine)[before[engine.address] :]]
            assert sorted(came) == sorted([prompt] for prompt in wanted[engine.address])


async def test_each_prompt_has_legs_of_its_own_with_all_other_members_as_they_came() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        body = (
            b'{"prompt": [ "a" , "b\\u00e9" , "c"], "max_tokens": 3, "temperature": 0.70, "x": {"a": [1.50]}}'
        )
        assert (await pair.service.ask(PATH, body)).status == 200
        for engine in pair.engines.all:
            legs = [s for s in engine.seen if s.path == PATH]
            assert len({leg.headers["X-Request-Id"] for leg in legs}) == 3
            assert sorted(leg.json()["prompt"][0] for leg in legs) == ["a", "bé", "c"]
            for leg in legs:
                assert b'"temperature":0.70' in leg.body
                assert b'"x":{"a": [1.50]}' in leg.body
        ids_of = [{s.headers["X-Request-Id"] for s in e.seen if s.path == PATH} for e in pair.engines.all]
        assert ids_of[0] == ids_of[1]


@pytest.mark.parametrize("members", [{"prompt_logprobs": 1}, {"echo": True, "logprobs": 1}])
async def test_a_list_that_one_leg_serves_is_not_taken_apart(members: dict[str, Any]) -> None:
    async with fleet(prefill=1, decode=1) as pair:
        answer = await pair.service.complete(["one", "two"], **members)
        assert len(answer.json["choices"]) == 2
        assert posts(pair.engines.prefill[0]) == []
        assert [b["prompt"] for b in posts(pair.engines.decode[0])] == [["one", "two"]]


async def test_instances_that_do_both_get_the_list_as_it_is() -> None:
    async with fleet(prefill=0, decode=0, both=2) as pair:
        answer = await pair.service.complete([str(n) for n in range(MAX_PROMPTS + 1)], max_tokens=1)
        assert len(answer.json["choices"]) == MAX_PROMPTS + 1
        assert sum(len(posts(e)) for e in pair.engines.both) == 1


# -- what is refused ----------------------------------------------------------------------------------------


REFUSED: list[list[Any]] = [
    [],
    [[]],
    [None],
    ["a", 1],
    ["a", None],
    [[1], "a"],
    ["a", [1]],
    [["x"], [1]],
    [[1], ["x"]],
    [[1], []],
    ["", ""],
    ["a", ""],
    [[1], [-1]],
    [[1], [10**6]],
    ["a", {}],
    [[1], [5] * 10_000],
    ["a", prose(10_000)],
]


async def test_what_an_engine_refuses_of_a_list_is_refused_in_its_words() -> None:
    async with fleet(prefill=1, decode=1) as pair, StandIn() as plain:
        for prompt in REFUSED:
            for stream in (False, True):
                body = {"prompt": prompt, "max_tokens": 3, "stream": stream}
                expected = await ask(pair.service.session, plain.url, PATH, body)
                answer = await pair.service.ask(PATH, body)
                assert (answer.status, answer.json) == (400, expected.json), prompt
        await nothing_is_left(pair)


async def test_what_an_engine_makes_of_odd_lists_is_what_the_client_gets() -> None:
    async with fleet(prefill=1, decode=1) as pair, StandIn() as plain:
        odd: list[list[Any]] = [["1", 2], [1, "2"], ["1", "2"], [[1], ["2"]], [[1, 2.0], [3]]]
        for prompt in odd:
            body = {"prompt": prompt, "max_tokens": 3, "temperature": 0}
            expected = await ask(pair.service.session, plain.url, PATH, body)
            answer = await pair.service.ask(PATH, body)
            assert expected.status == 200
            assert comparable(answer) == comparable(expected), prompt
        await nothing_is_left(pair)


async def test_more_prompts_than_one_request_may_have_are_refused_before_anything_is_sent() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        answer = await pair.service.complete(["x"] * (MAX_PROMPTS + 1), max_tokens=1)
        assert answer.status == 400
        assert "129" in answer.json["error"]["message"]
        assert "128" in answer.json["error"]["message"]
        assert answer.json["error"]["param"] == "prompt"
        assert sum(len(posts(e)) for e in pair.engines.all) == 0
        assert len((await pair.service.complete(["x"] * MAX_PROMPTS, max_tokens=1)).json["choices"]) == 128
        await nothing_is_left(pair)


async def test_a_large_member_is_not_copied_for_every_prompt_without_limit() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        answer = await pair.service.complete(["x"] * 100, user="u" * (1 << 20))
        assert answer.status == 400
        assert answer.json["error"]["param"] == "prompt"
        assert sum(len(posts(e)) for e in pair.engines.all) == 0


async def test_a_list_is_not_explained_as_if_it_went_one_way() -> None:
    async with fleet(prefill=1, decode=1) as pair:
        assert (await pair.service.explain({"prompt": ["a", "b"]}))["error"]["param"] == "prompt"
        assert "decode" in await pair.service.explain({"prompt": ["a"]})


@pytest.mark.parametrize("stream", [False, True])
async def test_one_prompt_that_is_refused_refuses_all_and_gives_back_the_rest(stream: bool) -> None:
    async with fleet(stand_in=UNHURRIED) as pair, StandIn() as plain:
        await have_met(pair)
        body = {"prompt": [*(prose(60, n) for n in range(6)), prose(10_000)], "stream": stream}
        expected = await ask(pair.service.session, plain.url, PATH, body)
        answer = await pair.service.ask(PATH, body)
        assert (answer.status, answer.json) == (expected.status, expected.json)
        assert answer.status == 400
        assert await pair.service.metric("kvproxy_requests_total", outcome="client_error") == 1
        await nothing_is_left(pair)


# -- engines that fail --------------------------------------------------------------------------------------


def bad(engine: StandIn, **fault: Any) -> None:
    engine.faults.add(Fault(**({"path": PATH} | fault)))


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
async def test_engines_that_fail_once_cost_a_retry_and_no_prompt(role: str, stream: bool) -> None:
    async with fleet() as pair, StandIn() as plain:
        body = {
            "prompt": [prose(30, n) for n in range(5)],
            "max_tokens": 6,
            "temperature": 0,
            "stream": stream,
        }
        expected = await ask(pair.service.session, plain.url, PATH, body)
        for engine in getattr(pair.engines, role):
            bad(engine, kind="status", status=500, times=1)
            bad(engine, kind="cut", times=1)
        answer = await pair.service.ask(PATH, body)
        assert (answer.status, answer.by_choice) == (200, expected.by_choice)
        assert (
            await pair.service.metric("kvproxy_retries_total", phase=role) >= 2
        )  # a release may meet a fault too
        await nothing_is_left(pair)


@pytest.mark.parametrize("stream", [False, True])
async def test_when_engines_fail_for_good_the_client_gets_their_words(stream: bool) -> None:
    async with fleet() as pair:
        for engine in pair.engines.decode:
            bad(engine, kind="status", status=500)
        answer = await pair.service.complete(["a", "b", "c"], stream=stream)
        assert (answer.status, answer.json["error"]["message"]) == (500, "a fault")
        for engine in pair.engines.decode:
            engine.faults.clear()
        await pair.service.settled()
        assert await pair.service.metric("kvproxy_in_flight_requests") == 0


async def raw_answer(service: Service, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(service.host, service.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    data = await reader.read()
    writer.close()
    await writer.wait_closed()
    return data


async def test_one_stream_that_is_cut_cuts_all_with_an_error_event_between_two_events() -> None:
    async with fleet(prefill=1, decode=2, stand_in=UNHURRIED) as pair:
        bad(pair.engines.decode[0], kind="cut", after_bytes=4000, times=1)
        body = (
            b'{"prompt": ["hello", "there", "you"], "max_tokens": 2000, "ignore_eos": true, "stream": true}'
        )
        data = await raw_answer(pair.service, body)
        assert b"HTTP/1.1 200" in data
        assert b"[DONE]" not in data
        assert not data.endswith(b"0\r\n\r\n")
        assert len(set(re.findall(rb'"index":(\d)', data))) == 3
        assert data.count(b'data: {"error":') == 1
        assert b"\n\n" in data.rpartition(b'data: {"error":')[0][-40:]
        assert await pair.service.metric("kvproxy_requests_total", outcome="cut") == 1
        await nothing_is_left(pair)


async def test_a_stream_that_is_cut_while_others_have_not_begun_is_served_anew() -> None:
    async with fleet(prefill=1, decode=2) as pair, StandIn() as plain:
        body = {"prompt": ["hello", "there"], "max_tokens": 100, "temperature": 0, "stream": True}
        expected = await ask(pair.service.session, plain.url, PATH, body)
        bad(pair.engines.decode[0], kind="cut", after_bytes=4000, times=1)
        bad(pair.engines.decode[1], kind="hang", times=1)
        asked = asyncio.get_running_loop().create_task(pair.service.ask(PATH, body))
        await pair.service.counts(1, "kvproxy_retries_total", phase="decode")
        await wait_until(lambda: not pair.engines.decode[1].faults.active(), "a leg that hangs")
        pair.engines.decode[1].faults.release()
        answer = await asked
        assert comparable(answer) == comparable(expected)
        assert sum(len(posts(e)) for e in pair.engines.prefill) == 3
        assert await pair.service.metric("kvproxy_retries_total", phase="decode") == 1
        await nothing_is_left(pair)


# -- clients that leave -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_in_any_phase_leaves_nothing_of_any_prompt(stream: bool) -> None:
    def asked(engines: list[StandIn], path: str) -> int:
        return sum(engine.asked[path] for engine in engines)

    def generated(pair: Pair) -> int:
        return sum(engine.model.stats.generated_tokens for engine in pair.engines.decode)

    async with fleet(prefill=1, decode=2, stand_in=UNHURRIED) as pair:
        await have_met(pair)
        phases: dict[str, tuple[list[StandIn], str]] = {
            "nothing": ([], PATH),
            "tokenizing": (pair.engines.all, "/tokenize"),
            "prefill": (list(pair.engines.prefill), PATH),
            "decode": (list(pair.engines.decode), PATH),
            "one decode": (list(pair.engines.decode[:1]), PATH),
        }
        for left, (phase, (engines, path)) in enumerate(phases.items(), 1):
            for engine in engines:
                engine.faults.add(Fault(kind="hang", path=path))
            body = {
                "prompt": [prose(30, left * 10 + n) for n in range(6)],
                "max_tokens": 3000,
                "ignore_eos": True,
                "stream": stream,
            }
            before = asked(engines, path), generated(pair)
            leaver = asyncio.get_running_loop().create_task(pair.service.ask(PATH, body))
            if engines:
                await wait_until(lambda: asked(engines, path) > before[0], phase)  # noqa: B023  # now
            else:
                await wait_until(lambda: generated(pair) > before[1] + 20, phase)  # noqa: B023  # now
            leaver.cancel()
            await pair.service.counts(left, "kvproxy_requests_total", outcome="client_left")
            for engine in engines:
                engine.faults.clear()
                engine.faults.release()
            await nothing_is_left(pair)


async def test_many_clients_leaving_at_random_leave_nothing_behind() -> None:
    async with fleet() as pair:
        await have_met(pair)
        rng = random.Random(8)
        ended: dict[str, int] = defaultdict(int)

        async def one(seed: int) -> None:
            count = rng.choice([2, 3, 20])
            body = {
                "prompt": [prose(rng.choice([3, 50]), 50 * seed + n) for n in range(count)],
                "max_tokens": rng.choice([1, 50, 300]),
                "stream": rng.random() < 0.5,
            }
            patience_s = rng.choice([0.001, 0.01, 0.05, 0.2, 15])
            try:
                async with (
                    asyncio.timeout(patience_s),
                    session.post(pair.service.url + PATH, json=body) as response,
                ):
                    await response.read()
                    ended[str(response.status)] += 1
            except TimeoutError:
                ended["left"] += 1

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=10)) as session:
            await asyncio.gather(*[one(n) for n in range(60)])
        assert set(ended) == {"200", "left"}
        await nothing_is_left(pair)
