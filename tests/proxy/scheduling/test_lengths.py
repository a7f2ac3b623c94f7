"""A request goes only where its context fits, waits only for what may fit, and is refused at once where
nothing can."""

import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.config import Admission, WhenNoPrefill, parse_instance
from proxy.errors import BadRequestError
from proxy.fleet import Fleet, Instance, ModelCard, Status
from proxy.phases import Role
from proxy.scheduling.lengths import Need, longest_context
from proxy.simulation import StandIn, StandInConfig
from proxy.tasks import TaskOwner
from tests.helpers.service import Engines, Pair, kvproxy, wait_until

Lengths = dict[str, int | None]


def fleet_of(**lengths: int | None) -> Fleet:
    """Instances by name: the first letter is the role, `None` tells no length, 0 has told nothing yet."""
    fleet = Fleet()
    for name, length in lengths.items():
        role = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}[name[0]]
        instance = Instance(parse_instance(f"{name}:1", role))
        instance.came_up()
        if length != 0:
            instance.listed([ModelCard("tiny", max_model_len=length), ModelCard("alpha", "tiny")], 0.0)
        fleet.add(instance)
    return fleet


def need(
    fleet: Fleet,
    prompt: int | None,
    answer: int,
    limited_by: str | None = "max_tokens",
    *,
    whole: bool = False,
) -> Need:
    return Need(fleet, "tiny", prompt, answer, limited_by, whole=whole)


@pytest.mark.parametrize(
    ("lengths", "prompt", "answer", "fitting"),
    [
        ({"p": 100, "d": 100}, 50, 50, {"p", "d"}),
        ({"p": 100, "p2": 51, "p3": 50, "d": 100, "d2": 99}, 50, 50, {"p", "p2", "d"}),
        (
            {"p": 100, "d": 100, "d2": 80},
            70,
            50,
            {"p", "d"},
        ),  # no engine holds it all: the longest answer wins
        ({"p": 100, "d": 100, "d2": 40}, None, 60, {"p", "d"}),
        ({"p": 100, "d": 100}, None, 160, {"p"}),
        ({"p": 100, "d": None}, 99, 1000, {"p", "d"}),
        ({"p": 100, "d": None}, 100, 1000, {"d"}),
        ({"b": 100, "b2": 60}, 50, 20, {"b"}),
        ({"b": 100, "d": 200}, 50, 80, {"b", "d"}),  # only one that does both can begin it
        ({"b": 100, "p": 100, "d": 200}, 50, 80, {"p", "d"}),
    ],
)
def test_who_may_have_a_leg(lengths: Lengths, prompt: int | None, answer: int, fitting: set[str]) -> None:
    fleet = fleet_of(**lengths)
    asked = need(fleet, prompt, answer)
    assert {i.address.removesuffix(":1") for i in fleet if asked.fits(i)} == fitting


OUTPUT = "Please request fewer output tokens. (parameter=max_tokens, value={})"
INPUT = (
    "This model's maximum context length is {0} tokens. However, your prompt contains {1} input tokens, which exceeds "
    "this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value={2})"
)


@pytest.mark.parametrize(
    ("lengths", "prompt", "answer", "words"),
    [
        ({"p": 100, "d": 100}, 99, 100, None),
        (
            {"p": 100, "d": 100},
            100,
            1,
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        ),
        ({"p": 100, "d": 80}, 81, 1, INPUT.format(80, "at least 81", 81)),
        ({"p": 80, "d": 100}, 90, 1, INPUT.format(80, "90", 90)),
        (
            {"p": 100, "d": 80},
            10,
            81,
            f"max_tokens=81 cannot be greater than max_model_len=80. {OUTPUT.format(81)}",
        ),
        (
            {"p": 100, "d": 80},
            None,
            81,
            f"max_tokens=81 cannot be greater than max_model_len=80. {OUTPUT.format(81)}",
        ),
        (
            {"p": 10, "b": 50, "d": 100},
            20,
            60,
            f"max_tokens=60 cannot be greater than max_model_len=50. {OUTPUT.format(60)}",
        ),
        ({"p": 10, "d": 100}, 5, 60, None),
        ({"p": 100, "d": 80, "d2": 0}, 90, 1, None),  # one that has told nothing yet may hold it
        ({"p": 100, "d": 80, "d2": None}, 90, 1, None),
        ({"p": 100}, 90, 1, None),  # there is no decode instance at all: nothing is known
        ({}, 90, 1, None),
    ],
)
def test_what_is_refused(lengths: Lengths, prompt: int | None, answer: int, words: str | None) -> None:
    refusal = need(fleet_of(**lengths), prompt, answer).refusal()
    assert (None if refusal is None else str(refusal)) == words


def test_an_answer_nobody_limited_is_as_long_as_fits() -> None:
    fleet = fleet_of(p=100, d=100)
    assert need(fleet, 95, 16, None).refusal() is None
    assert all(need(fleet, 95, 16, None).fits(instance) for instance in fleet)
    assert isinstance(need(fleet, 100, 16, None).refusal(), BadRequestError)


@pytest.mark.parametrize(
    ("lengths", "longest", "alone"),
    [
        ({"p": 100, "d": 80}, 80, 80),
        ({"p": 60, "d": 80}, 60, 80),
        ({"p": 60, "d": 80, "b": 70}, 70, 80),
        ({"p": 60}, None, None),
        ({"d": 60}, None, 60),
        ({"p": None, "d": 60}, 60, 60),
        ({"p": None, "d": None}, math.inf, math.inf),
    ],
)
def test_what_context_a_request_can_have(
    lengths: Lengths, longest: float | None, alone: float | None
) -> None:
    instances = list(fleet_of(**lengths))
    assert longest_context(instances) == longest
    assert longest_context(instances, alone=True) == alone


# -- engines --------------------------------------------------------------------------------------------------


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


async def test_what_fits_nowhere_is_refused_in_the_engines_words_before_any_prefill() -> None:
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


async def test_what_only_a_decode_instance_holds_is_served_by_it_where_that_is_allowed() -> None:
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
