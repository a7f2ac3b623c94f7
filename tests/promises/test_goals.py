"""`X-Kvproxy-TTFT-Ms` is kept from engines, decides under a policy that predicts, and may refuse early."""

import pytest

from proxy.config import Admission
from tests.helpers.service import ADMIN_KEY, engines, fleet, kvproxy, prose

PATH = "/v1/completions"
BODY = {"model": "tiny", "prompt": prose(40), "max_tokens": 3}


@pytest.mark.parametrize("path", [PATH, "/explain"])
async def test_a_bad_goal_is_400_and_names_the_header(path: str) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        for bad in ("0", "-5", "1.5", "soon", "inf"):
            answer = await pair.service.ask(path, BODY, X_Kvproxy_TTFT_Ms=bad, X_API_Key=ADMIN_KEY)
            assert answer.status == 400
            assert answer.json["error"]["param"] == "X-Kvproxy-TTFT-Ms"
            assert "X-Kvproxy-TTFT-Ms must be a whole number" in answer.json["error"]["message"]


@pytest.mark.parametrize("policy", ["least_ms", "cache_affinity"])
async def test_a_goal_that_is_missed_cuts_nothing_and_is_counted(policy: str) -> None:
    async with engines(prefill=2, decode=2) as made, kvproxy(made.config(policy=policy)) as service:
        for goal in ("600000", "1"):
            answer = await service.ask(PATH, BODY | {"stream": True}, X_Kvproxy_TTFT_Ms=goal)
            assert answer.status == 200
        assert (await service.ask(PATH, BODY, X_Kvproxy_TTFT_Ms="1")).status == 200
        assert (await service.ask(PATH, BODY | {"stream": True})).status == 200
        assert await service.metric("kvproxy_ttft_goals_total", outcome="met") == 1
        assert await service.metric("kvproxy_ttft_goals_total", outcome="missed") == 1
        for engine in made.all:
            assert not any("X-Kvproxy-TTFT-Ms" in seen.headers for seen in engine.seen)
        await service.settled()


async def test_one_that_would_be_far_late_is_refused_at_once_if_so_configured() -> None:
    async with engines(prefill=1, decode=1) as made:
        config = made.config(policy="least_ms", admission=Admission(refuse_late=1.5))
        async with kvproxy(config) as service:
            refused = await service.ask(PATH, BODY, X_Kvproxy_TTFT_Ms="1")
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) >= 1
            error = refused.json["error"]
            assert (
                "wanted within 1 ms (X-Kvproxy-TTFT-Ms, --refuse-late): come back later" in error["message"]
            )
            assert error["code"] == 503
            assert (await service.ask(PATH, BODY, X_Kvproxy_TTFT_Ms="600000")).status == 200
            assert (await service.ask(PATH, BODY)).status == 200
            assert await service.metric("kvproxy_refused_requests_total", reason="late") == 1
            assert await service.metric("kvproxy_requests_total", outcome="unavailable") == 1
            await service.settled()


async def test_a_price_within_a_goal_is_explained() -> None:
    async with engines(prefill=2, decode=2) as made, kvproxy(made.config(policy="least_ms")) as service:
        told = await service.ask("/explain", BODY, X_API_Key=ADMIN_KEY, X_Kvproxy_TTFT_Ms="600000")
        for pair in told.json["pairs"]:
            terms = pair["terms"]
            others_ms = terms["cost_ms"] - terms["ttft_ms"]
            assert pair["cost"] == pytest.approx(others_ms + 0.001 * terms["ttft_ms"])
