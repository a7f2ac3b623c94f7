"""The figures of the worked example in docs/policies.md are those of the formula."""

import pathlib
import re

import msgspec
import pytest

from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES
from proxy.scheduling.policies import LeastMs
from proxy.scheduling.terms import terms_of
from proxy.scheduling.types import Candidate, View
from tests.helpers.candidates import candidate

N = 12_000
PAGE = pathlib.Path(__file__).parents[3] / "docs" / "policies.md"
ROWS = ("wait", "prefill", "overhead", "transfer", "step", "**TTFT**", "cache", "stall", "decode", "**cost**")


def made(name: str, uncached: int, wait_ms: float = 0, sequences: int = 0, context: int = 0) -> Candidate:
    return msgspec.structs.replace(
        candidate(f"{name}:1", uncached=uncached),
        wait_ms=float(wait_ms),
        sequences=float(sequences),
        context_tokens=float(context),
    )


def view() -> View:
    """Two prefill instances, one of which has 8000 tokens cached and is busy, and two decode instances."""
    model = LatencyModel(PROFILES["dynamo-replay"])
    prefill = [made("p0", N), made("p1", N - 8000, 60)]
    decode = [made("d0", N, 0, 20, 240_000), made("d1", N, 0, 10, 100_000)]
    return View("m", N, prefill, decode, alone=decode, estimated_tokens=N, latency=model)


def test_the_page_has_what_is_computed() -> None:
    seen = view()
    told = {
        "-".join(dict.fromkeys(each.instance.removesuffix(":1") for each in pair)): terms_of(pair, seen)
        for pair in seen.pairs
    }
    names = ["p0-d1", "p1-d0", "p1-d1", "d1"]
    table = (
        PAGE.read_text().partition("| ms | p0, d1 | p1, d0 | p1, d1 | d1 alone |\n")[2].partition("\n\n")[0]
    )
    shown = {
        row[0]: [float(cell.strip("*")) for cell in row[1:]]
        for row in (re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()[1:])
    }
    assert tuple(shown) == ROWS
    for place, name in enumerate(names):
        terms = told[name]
        computed = (
            terms.wait_ms,
            terms.prefill_ms,
            terms.overhead_ms,
            terms.transfer_ms,
            terms.step_ms,
            terms.ttft_ms,
            terms.cache_price_ms,
            terms.stall_price_ms,
            terms.decode_price_ms,
            terms.cost_ms,
        )
        assert [row[place] for row in shown.values()] == pytest.approx([round(x, 1) for x in computed])
    prices = LeastMs().prices(seen)
    cheapest = seen.pairs[prices.index(min(prices))]
    assert [each.instance for each in cheapest] == ["p1:1", "d1:1"]
