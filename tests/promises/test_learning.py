"""Every engine is asked by itself: none waits for one that hangs, and passing failures are not learned as
facts.
"""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.edge.app_keys import SERVICE
from proxy.simulation import StandIn, StandInConfig
from proxy.simulation.api.model_files import write_model
from proxy.simulation.live.faults import Fault
from proxy.tokenizing.learning import LEARNING_WAITS, LearningWaits
from proxy.tokenizing.prompts import PromptTokenizer
from proxy.tokenizing.tool_choices import COUNT_PATH, Choice, Tools
from proxy.tuning import Tuning
from tests.helpers.service import Engines, Service, kvproxy, wait_until

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
WANTS_ALL = {
    "messages": [{"role": "user", "content": "hello"}],
    "tools": TOOLS,
    "tool_choice": "none",
    "num_ctx": 1,
}
QUESTIONS = ["/tokenize", "/version", "/openapi.json", COUNT_PATH]


class Stage:
    """A prefill engine that has a fault, a decode engine of another version, and what is known of both."""

    def __init__(self, service: Service, made: Engines) -> None:
        self.service = service
        self.faulty, self.sound = made.prefill[0].address, made.decode[0].address
        self.tokenizer: PromptTokenizer = service.app[SERVICE].tokenizer

    def knows_all_of(self, address: str) -> bool:
        facts = self.tokenizer._facts
        compared = address in self.tokenizer.status().checked_with
        return compared and not facts.lacks_schema(address) and not facts.lacks_choices(address)


@contextlib.asynccontextmanager
async def stage(
    directory: pathlib.Path, *faults: Fault, waits: LearningWaits = LEARNING_WAITS
) -> AsyncIterator[Stage]:
    write_model(directory)
    config: dict[str, Any] = {"tool_parser": True, "excludes_tools": True}
    async with (
        StandIn(StandInConfig(version="0.98.0", **config)) as prefill,
        StandIn(StandInConfig(version="0.99.0", **config)) as decode,
    ):
        for fault in faults:
            prefill.faults.add(fault)
        made = Engines([prefill], [decode], [])
        async with kvproxy(made.config(tokenizer=str(directory)), tuning=Tuning(learning=waits)) as service:
            for _ in range(2):
                await service.explain(WANTS_ALL)
            yield Stage(service, made)


@pytest.mark.parametrize("path", QUESTIONS)
async def test_an_engine_that_hangs_holds_up_no_other(tmp_path: pathlib.Path, path: str) -> None:
    async with stage(tmp_path, Fault(kind="hang", path=path)) as it:
        async with asyncio.timeout(LEARNING_WAITS.compare_s - 2):
            await wait_until(lambda: it.knows_all_of(it.sound), "all there is to know of the other")
        assert not it.knows_all_of(it.faulty)


@pytest.mark.parametrize("path", QUESTIONS)
async def test_an_engine_that_hung_is_asked_again(tmp_path: pathlib.Path, path: str) -> None:
    waits = LearningWaits(compare_s=0.3, ask_s=0.3, again_s=0.01)
    async with stage(tmp_path, Fault(kind="hang", path=path, times=2), waits=waits) as it:
        await wait_until(lambda: it.knows_all_of(it.faulty) and it.knows_all_of(it.sound), "all")


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("path", QUESTIONS[1:])
async def test_a_passing_failure_is_not_learned(tmp_path: pathlib.Path, path: str, status: int) -> None:
    fault = Fault(kind="status", path=path, status=status, times=2)
    async with stage(tmp_path, fault, waits=LearningWaits(again_s=0.01)) as it:
        await wait_until(lambda: it.knows_all_of(it.faulty), "all there is to know")
        assert "0.98.0" in it.tokenizer.status().schemas
        assert it.tokenizer._facts._choices[it.faulty][Choice.NONE] is Tools.LEFT_OUT


async def test_a_refusal_is_learned(tmp_path: pathlib.Path) -> None:
    faults = [Fault(kind="status", path=path, status=404) for path in ("/openapi.json", COUNT_PATH)]
    async with stage(tmp_path, *faults) as it:
        await wait_until(lambda: it.knows_all_of(it.faulty) and it.knows_all_of(it.sound), "all")
        assert it.tokenizer.status().schemas == ["0.99.0"]
        assert it.tokenizer._facts._choices[it.faulty] == {}
