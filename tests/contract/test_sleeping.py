"""A sleeping engine answers questions, keeps requests waiting, and has lost what it had cached."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.tasks import TaskOwner
from scripts.workshop.engines.engine import BLOCK_TOKENS as B
from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import AT_REST_S, Engine
from tests.contract.prompts import ids

STATES = ("awake", "weights_offloaded", "discard_all")


@pytest.fixture
async def sleeper(engine: Engine) -> AsyncIterator[Engine]:
    """An engine at rest that is awake again afterwards."""
    await engine.at_rest()
    yield engine
    await engine.send("POST", "/wake_up")


async def post(engine: Engine, path: str) -> Any:
    status, _, answer = await engine.send("POST", path)
    assert status == 200, answer
    return json.loads(answer)


async def sleeping(engine: Engine) -> bool:
    return bool((await engine.get("/is_sleeping"))["is_sleeping"])


async def states(engine: Engine) -> list[float]:
    page = await engine.metrics()
    return [page.total("vllm:engine_sleep_state", sleep_state=state) for state in STATES]


@pytest.mark.parametrize(("level", "told"), [(0, [0, 0, 0]), (1, [0, 1, 0]), (2, [0, 0, 1])])
async def test_what_it_says_of_itself(sleeper: Engine, level: int, told: list[float]) -> None:
    assert not await sleeping(sleeper)
    assert await states(sleeper) == [1, 0, 0]
    assert await post(sleeper, f"/sleep?level={level}") == {"status": "sleeping", "level": level}
    assert await sleeping(sleeper)
    assert await states(sleeper) == told
    for path in ("/health", "/v1/models", "/kv_event_sources", "/metrics"):
        assert (await sleeper.send("GET", path))[0] == 200
    assert await post(sleeper, "/wake_up") == {"status": "awake", "tags": None}
    assert not await sleeping(sleeper)
    assert await states(sleeper) == [1, 0, 0]


async def test_part_of_it_awake_is_asleep(sleeper: Engine) -> None:
    await post(sleeper, "/sleep?level=1")
    assert await post(sleeper, "/wake_up?tags=weights") == {"status": "sleeping", "tags": ["weights"]}
    assert await sleeping(sleeper)
    assert (await post(sleeper, "/wake_up?tags=kv_cache"))["status"] == "awake"
    assert not await sleeping(sleeper)


@pytest.mark.parametrize(("level", "cached"), [(0, 2 * B), (1, 0), (2, 0)])
async def test_a_request_waits_until_it_is_awake_and_finds_what_is_left(
    sleeper: Engine, level: int, cached: int
) -> None:
    body = ids(2 * B + 1, f"slept on at level {level}")
    before = await sleeper.served(body)
    assert (await sleeper.served(body)).reported == 2 * B
    await sleeper.at_rest()
    await post(sleeper, f"/sleep?level={level}")
    clients = TaskOwner("clients")
    waiting = clients.create(sleeper.served(body), name="waits")
    await asyncio.wait({waiting}, timeout=0.5)  # long enough to be answered
    assert not waiting.done()
    await post(sleeper, "/wake_up")
    after = await waiting
    assert after.reported == cached
    assert after.text == before.text


async def test_what_runs_is_aborted_or_ends_as_it_is_told(sleeper: Engine) -> None:
    long = ids(B, "runs on", 200)
    clients = TaskOwner("clients")
    for mode, reason in (("abort", "abort"), ("wait", "length")):
        running = clients.create(sleeper.served(long), name=mode)

        async def runs() -> bool:
            return await sleeper.metric("vllm:num_requests_running") == 1

        await wait_until(runs, AT_REST_S, "it runs")
        await post(sleeper, f"/sleep?mode={mode}")
        [choice] = (await running).json["choices"]
        assert choice["finish_reason"] == reason
        assert await sleeping(sleeper)
        await post(sleeper, "/wake_up")
