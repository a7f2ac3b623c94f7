"""Adapters come and go while an engine runs, and share its batch as far as it has slots for them; what is
refused is refused in vLLM's words.
"""

import asyncio
import json
import pathlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import Engine
from tests.contract.prompts import ids

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
LONG = 1900  # tokens that take longer than a test


async def post(engine: Engine, path: str, **body: Any) -> tuple[int, Any]:
    """Status, and the words of success or the error."""
    head = {"Content-Type": "application/json"}
    status, headers, answer = await engine.send("POST", path, json.dumps(body).encode(), head)
    if status == 200:
        assert headers.get("Content-Type", "application/octet-stream") == "application/octet-stream"
        return status, answer.decode()
    return status, json.loads(answer)["error"]


async def listed(engine: Engine) -> dict[str, str]:
    return {card["id"]: card["root"] for card in (await engine.get("/v1/models"))["data"]}


@pytest.fixture
async def path(engine: Engine, tmp_path: pathlib.Path) -> AsyncIterator[str]:
    """Where an adapter is; whatever was loaded is gone afterwards."""
    root = (await listed(engine))["alpha"]
    yield root if root.startswith("/") else str(tmp_path)
    for name in set(await listed(engine)) - {"tiny", "alpha"}:
        await post(engine, UNLOAD, lora_name=name)


async def test_one_that_is_loaded_serves_until_it_is_unloaded(engine: Engine, path: str) -> None:
    assert (await engine.ask(ids(20, "no beta", model="beta"))).status == 404
    loaded = await post(engine, LOAD, lora_name="beta", lora_path=path)
    assert loaded == (200, "Success: LoRA adapter 'beta' added successfully.")
    assert (await listed(engine))["beta"] == path
    assert (await engine.served(ids(20, "a beta", model="beta"))).json["model"] == "beta"
    again = await post(engine, LOAD, lora_name="beta", lora_path=path, load_inplace=True)
    assert again == loaded
    gone = await post(engine, UNLOAD, lora_name="beta")
    assert gone == (200, "Success: LoRA adapter 'beta' removed successfully.")
    assert set(await listed(engine)) == {"tiny", "alpha"}
    assert (await engine.ask(ids(20, "no beta", model="beta"))).status == 404


async def test_one_batch_has_one_adapter(engine: Engine, path: str) -> None:
    """A request for another adapter waits until the batch has none, whoever comes meanwhile; `max_lora` says
    how many there may be.
    """
    await post(engine, LOAD, lora_name="beta", lora_path=path)
    ended: list[str] = []

    async def served(model: str) -> None:
        assert (await engine.served(ids(20, f"behind: {model}", model=model))).status == 200
        ended.append(model)

    ahead = ids(20, "ahead", LONG, model="alpha")
    async with asyncio.TaskGroup() as group, engine.streaming(ahead) as answer:
        assert await answer.content.readline()
        group.create_task(served("beta"))
        await wait_until(partial(waits, engine), 20, "beta waits")
        assert await has_adapters(engine, "alpha")
        await served("tiny")
        await served("alpha")
        assert ended == ["tiny", "alpha"]
    assert ended == ["tiny", "alpha", "beta"]


async def waits(engine: Engine) -> bool:
    return await engine.metric("vllm:num_requests_waiting") == 1


async def has_adapters(engine: Engine, names: str) -> bool:
    """Whether its metrics told last of these adapters: both labels name those that are in the batch."""
    lines = [
        (float(line.rpartition(" ")[2]), line)
        for line in (await engine.metrics()).text.splitlines()
        if line.startswith("vllm:lora_requests_info{")
    ]
    _, last = max(lines, default=(0.0, ""))
    labels = 'max_lora="1"', f'running_lora_adapters="{names}"', f'waiting_lora_adapters="{names}"'
    return all(each in last for each in labels)


@pytest.mark.parametrize(
    ("route", "body", "status", "kind", "words"),
    [
        (
            LOAD,
            {"lora_name": "", "lora_path": "x"},
            400,
            "InvalidUserInput",
            "Both 'lora_name' and 'lora_path'",
        ),
        (
            LOAD,
            {"lora_name": "tiny", "lora_path": "x"},
            400,
            "InvalidUserInput",
            "'tiny' conflicts with a served",
        ),
        (
            LOAD,
            {"lora_name": "alpha", "lora_path": "x"},
            400,
            "InvalidUserInput",
            "'alpha' has already been loaded.",
        ),
        (
            LOAD,
            {"lora_name": "b", "lora_path": "/none"},
            404,
            "NotFoundError",
            "failed: No adapter found for /none",
        ),
        (LOAD, {"lora_name": "b"}, 400, "Bad Request", "Field required"),
        (LOAD, {"lora_name": 1, "lora_path": "x"}, 400, "Bad Request", "Input should be a valid string"),
        (UNLOAD, {"lora_name": "b"}, 404, "NotFoundError", "The lora adapter 'b' cannot be found."),
        (UNLOAD, {"lora_name": ""}, 400, "InvalidUserInput", "'lora_name' needs to be provided to unload"),
        (UNLOAD, {}, 400, "Bad Request", "Field required"),
    ],
)
async def test_what_is_refused(
    engine: Engine, route: str, body: dict[str, Any], status: int, kind: str, words: str
) -> None:
    found, error = await post(engine, route, **body)
    assert (found, error["code"], error["type"]) == (status, status, kind)
    assert words in error["message"]
