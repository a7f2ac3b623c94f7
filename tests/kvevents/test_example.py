"""The example in the docs is run as a user runs it, against a publisher that behaves as vLLM's."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kvevents.bench import Bench, publish

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "cached_prefix.py"


def test_the_page_shows_the_example_that_is_tested() -> None:
    program = EXAMPLE.read_text(encoding="utf-8").split('"""\n\n', 1)[1]
    shown = program.replace("  # noqa: ARG002  # there is only one", "")
    assert shown.strip() in (ROOT / "docs" / "kvevents.md").read_text(encoding="utf-8")


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
