"""Each cell of the matrix: kvproxy's answer is a plain engine's, event by event and header by header, by as
many legs as the cell says; to a prompt that is new, and to the same one when it is cached.
"""

import aiohttp
import pytest

from scripts.workshop.live.metrics import read_metrics
from tests.fidelity.comparing import differences, seen, told
from tests.fidelity.conftest import Sides
from tests.fidelity.matrix import REFUSALS, Cell, Served, cells

TURNS = 2  # new, then cached
WORDS = tuple(f"answer.body.error.{name}" for name in ("message", "type", "param"))


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in cells()])
async def test_a_cell(session: aiohttp.ClientSession, sides: Sides, cell: Cell) -> None:
    before = await read_metrics(session, sides.proxy.url)
    joined = sides.real or cell.feature.prompts > 1  # prompts of a list are answered side by side
    for _ in range(TURNS):
        expected = await told(session, sides.plain + cell.route.path, cell.body)
        got = await told(session, sides.proxy.url + cell.route.path, cell.body)
        assert (expected.status != 200) == (cell.served in REFUSALS), expected.body
        found = differences(seen(got, joined=joined), seen(expected, joined=joined))
        assert [d for d in found if not may_differ(cell, d.where)] == []
        instances = {got.headers.get(f"X-Kvproxy-{leg}") for leg in ("Prefill", "Decode")} - {None, ""}
        if got.status == 200 and instances:  # a list says nothing of where its prompts went
            assert (len(instances) == 2) == (cell.served is Served.LEGS)
    after = await read_metrics(session, sides.proxy.url)
    holds = "kvproxy_holds_total"
    legs = TURNS * cell.feature.prompts if cell.served is Served.LEGS else 0
    assert after.total(holds, end="pulled") - before.total(holds, end="pulled") == legs
    assert after.total(holds) - before.total(holds) == legs


def may_differ(cell: Cell, where: str) -> bool:
    """Whether the matrix says of a member that it is not a plain engine's."""
    if cell.served is Served.WORDED and where in WORDS:
        return True
    return any(where.endswith(f".{other.member}") for other in cell.others)
