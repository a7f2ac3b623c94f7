"""The example in the docs is run as a user runs it, against a publisher that behaves as vLLM's."""

import asyncio
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvevents import BlockHasher, PrefixIndex, Resumed
from kvevents.subscriber import SourceAddress, Subscriber
from tests.kvevents.bench import Bench, publish, until

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "cached_prefix.py"
PAGE = ROOT / "docs" / "kvevents.md"


def test_the_page_shows_the_example_that_is_tested() -> None:
    program = EXAMPLE.read_text(encoding="utf-8").split('"""\n\n', 1)[1]
    shown = program.replace("  # noqa: ARG002  # there is only one", "")
    assert shown.strip() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("published", "tokens", "cached"), [(3, 8, 6), (3, 4, 4), (0, 8, 0)], ids=["part", "all", "nothing"]
)
def test_it_says_which_prefix_is_cached(bench: Bench, published: int, tokens: int, cached: int) -> None:
    publisher = bench.publisher()
    publish(publisher, 1, published)
    publisher.settle()
    prompt = [str(token) for token in range(1, tokens + 1)]
    told = subprocess.run(
        [sys.executable, EXAMPLE, bench.endpoint, bench.replay, *prompt],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert told.stdout.splitlines() == [
        "what is known is exact",
        f"{cached} of {tokens} tokens are cached",
    ]
    assert told.stderr == ""


async def test_what_the_page_writes_down_is_what_it_loads(bench: Bench) -> None:
    _, write, load = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    publisher = bench.publisher()
    publish(publisher, 1, 3)
    publisher.settle()
    address = SourceAddress(0, bench.endpoint, bench.replay)
    index = PrefixIndex(BlockHasher(b"secret"))
    async with running(Subscriber("engine", address, index)) as subscriber:
        await until(lambda: subscriber.checkpoint is not None)
        data = await as_the_page(write, "data", index=index, subscriber=subscriber)
    later = PrefixIndex(BlockHasher(b"secret"))
    again = await as_the_page(load, "subscriber", index=later, address=address, data=data)
    async with running(again):
        await until(lambda: again.resumed is Resumed.RESTORED)
        assert later.blocks() == index.blocks()
    assert publisher.requests == [0, 2]


@asynccontextmanager
async def running(subscriber: Subscriber) -> AsyncIterator[Subscriber]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(subscriber.run())
        yield subscriber
        task.cancel()


async def as_the_page(code: str, result: str, **given: Any) -> Any:
    """What a name stands for once code of the page has run; it may use all that is public and what is given."""
    imports = "from kvevents import *\nfrom kvevents.snapshot import *\nfrom kvevents.subscriber import *\n"
    program = f"async def page():\n{textwrap.indent(code, '    ')}\n    return {result}\n"
    exec(imports + program, given)  # the page's own code
    return await given["page"]()
