"""Of long bodies one is read in a turn of the event loop: many at once stop nobody together."""

import asyncio
from typing import Any

import pytest

from proxy.edge.routes import generate
from proxy.request.generation import read_request
from tests.helpers.service import fleet

BODIES = 12


async def test_of_long_bodies_one_is_read_in_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in: list[int] = []
    turn = 0

    def read_and_note(*arguments: Any) -> Any:
        read_in.append(turn)
        return read_request(*arguments)

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(generate, "read_request", read_and_note)
    async with fleet(1, 1) as pair:
        counting = asyncio.get_running_loop().create_task(count_turns())
        text = "x " * generate.LONG_BODY_BYTES
        answers = await asyncio.gather(*(pair.service.complete(text) for _ in range(BODIES)))
        counting.cancel()
    assert {answer.status for answer in answers} <= {200, 400}
    assert len(read_in) == len(set(read_in)) == BODIES
