"""Policies by name, on sockets: sessions stay, prompts without events return to where they were sent, and
`/explain` changes nothing.
"""

from typing import Any

import pytest

from proxy.request.body import Body
from proxy.request.sessions import session_of
from tests.helpers.service import ADMIN_KEY, Engines, Service, engines, kvproxy, prose

FRIENDS = {"policy": "session", "kv_events": False, "decision_headers": True}


async def chosen(service: Service, body: dict[str, Any], **headers: str) -> tuple[str, str]:
    """The instances that `/explain` names."""
    told = (await service.ask("/explain", body, X_API_Key=ADMIN_KEY, **headers)).json
    return told["prefill"]["chosen"], told["decode"]["chosen"]


async def used(service: Service, body: dict[str, Any], **headers: str) -> tuple[str, str]:
    """The instances that served a completion."""
    answer = await service.ask("/v1/completions", body, **headers)
    assert answer.status == 200
    return answer.headers["X-Kvproxy-Prefill"], answer.headers["X-Kvproxy-Decode"]


def body(seed: int, **members: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prose(40, seed), "max_tokens": 2} | members


def seen(made: Engines, path: str) -> int:
    return sum(each.path == path for engine in made.all for each in engine.seen)


async def test_a_session_stays_on_its_pair_whatever_is_asked_and_is_not_tokenized() -> None:
    async with engines(prefill=3, decode=3) as made, kvproxy(made.config(**FRIENDS)) as service:
        before = seen(made, "/tokenize")
        homes: set[tuple[str, str]] = set()
        for session in map(str, range(12)):
            home = await used(service, body(1), X_Session_ID=session)
            assert await used(service, body(2, user=session)) == home, "whoever names it"
            assert await used(service, body(3, user="all", prompt_cache_key=session)) == home
            homes.add(home)
        assert len(homes) > 1
        assert seen(made, "/tokenize") == before
        home = await used(service, body(4), X_Session_ID="7")
        assert await chosen(service, body(5), X_Session_ID="7") == home
        assert await chosen(service, body(5, user="7")) == home


async def test_the_header_has_the_name_that_was_configured() -> None:
    async with (
        engines(prefill=4, decode=1) as made,
        kvproxy(made.config(**FRIENDS, session_header="X-Chat")) as service,
    ):
        for session in map(str, range(6)):
            home = await chosen(service, body(1, user=session))
            assert await chosen(service, body(1, user="other"), X_Chat=session) == home
            other = await chosen(service, body(1, user="other"))
            assert await chosen(service, body(1, user="other"), X_Session_ID=session) == other


async def test_the_prompts_of_a_list_go_where_their_session_is() -> None:
    async with engines(prefill=3, decode=3) as made, kvproxy(made.config(**FRIENDS)) as service:
        home = await used(service, body(1, user="a"))
        assert (await service.complete([prose(20, seed) for seed in range(4)], user="a")).status == 200
        legs = {engine.address for engine in made.all if seen_by(engine, "/v1/completions")}
        assert legs == set(home)


def seen_by(engine: Any, path: str) -> int:
    return sum(each.path == path for each in engine.seen)


@pytest.mark.parametrize("policy", ["cache_affinity", "session"])
async def test_only_a_policy_that_reads_sessions_has_them_found_out(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def counted(named: str | None, members: Body) -> str | None:
        asked.append(named)
        return session_of(named, members)

    monkeypatch.setattr("proxy.edge.routes.generate.session_of", counted)
    async with (
        engines(prefill=1, decode=1) as made,
        kvproxy(made.config(**FRIENDS | {"policy": policy})) as service,
    ):
        await used(service, body(1), X_Session_ID="a")
        assert asked == (["a"] if policy == "session" else [])
        await chosen(service, body(1), X_Session_ID="a")
        assert asked[-1] == "a"  # which /explain tells, whatever the policy reads


async def test_without_events_a_prompt_returns_to_where_it_was_sent() -> None:
    config = {"policy": "approx_prefix", "kv_events": False, "decision_headers": True}
    async with engines(prefill=4, decode=2) as made, kvproxy(made.config(**config)) as service:
        for seed in range(4):
            home, _ = await used(service, body(seed))
            for turn in range(3):
                longer = body(seed) | {"prompt": prose(40, seed) + " " + prose(10, 100 + turn)}
                assert (await chosen(service, longer))[0] == home
                assert (await used(service, longer))[0] == home


async def test_the_session_that_is_seen_is_told_whatever_the_policy_reads() -> None:
    async with engines(prefill=1, decode=1) as made:
        for policy in ("session", "least_ms"):
            async with kvproxy(made.config(policy=policy)) as service:
                asked = [body(1), body(1, user="alice"), body(1, user="alice", prompt_cache_key="chat-7")]
                told = [(await service.explain(each))["session"] for each in asked]
                assert told == [None, "alice", "chat-7"]
                named = await service.ask("/explain", asked[2], X_API_Key=ADMIN_KEY, X_Session_ID="mine")
                assert named.json["session"] == "mine"


async def test_what_a_price_in_milliseconds_is_made_of_is_told_for_each_pair() -> None:
    async with engines(prefill=2, decode=2) as made, kvproxy(made.config(policy="least_ms")) as service:
        told = await service.explain(body(1))
        assert told["unit"] == "milliseconds"
        legs = {(pair["prefill"], pair["decode"]) for pair in told["pairs"]}
        assert len(legs) == len(told["pairs"]) == 4 + 2, "each pair, and each decode instance alone"
        for pair in told["pairs"]:
            terms = pair["terms"]
            assert terms["cost_ms"] == pytest.approx(pair["cost"])
            parts = ("wait", "prefill", "overhead", "handshake", "transfer", "decode_wait", "step")
            assert terms["ttft_ms"] == pytest.approx(sum(terms[f"{part}_ms"] for part in parts))
            prices = sum(terms[f"{part}_price_ms"] for part in ("cache", "stall", "decode"))
            assert terms["cost_ms"] == pytest.approx(terms["ttft_ms"] + prices)
            assert terms["prefill_ms"] > 0
            alone = pair["prefill"] == pair["decode"]
            assert (terms["transfer_ms"] == 0) == alone
    async with engines(prefill=1, decode=1) as made, kvproxy(made.config(policy="least_load")) as service:
        assert (await service.explain(body(1)))["pairs"] == []


async def test_what_was_only_explained_is_not_remembered() -> None:
    config = {"policy": "approx_prefix", "kv_events": False, "decision_headers": True}
    async with engines(prefill=2, decode=1) as made, kvproxy(made.config(**config)) as service:
        for _ in range(3):
            await chosen(service, body(1))
        told = await service.explain(body(1))
        assert [c["cost"] for c in told["prefill"]["candidates"]] == [0, 0], "nobody holds it"
        home, _ = await used(service, body(1))
        await service.settled()
        told = await service.explain(body(1))
        costs = {c["instance"]: c["cost"] for c in told["prefill"]["candidates"]}
        assert [address for address, cost in costs.items() if cost is not None] == [home]


@pytest.mark.parametrize("policy", ["random", "power_of_two", "session", "approx_prefix"])
@pytest.mark.parametrize("roles", [(2, 2, 0), (0, 0, 3)])
async def test_every_policy_serves_both_kinds_of_fleet(policy: str, roles: tuple[int, int, int]) -> None:
    async with (
        engines(*roles) as made,
        kvproxy(made.config(policy=policy, kv_events=False)) as service,
    ):
        for seed in range(6):
            assert (await service.complete(prose(40, seed), user=str(seed))).status == 200
            assert (await service.chat(prose(40, seed))).status == 200
        told = await service.explain(body(1))
        assert told["policy"] == policy
        await service.settled()
