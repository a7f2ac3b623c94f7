"""The findings of a tried pair: which leg they name, and whose remedy they give, whichever the connector."""

import pytest

from proxy.connectors import CONNECTORS
from proxy.connectors.hand_over import judged
from proxy.connectors.seen import LegEnd, TriedPair
from proxy.findings import Status

OK = LegEnd()
BROKEN = LegEnd("the connection ended early")
REMEDY = "open the port"


@pytest.mark.parametrize(
    ("prefill", "decode", "words", "remedy"),
    [
        (
            BROKEN,
            None,
            "the prefill leg failed: the connection ended early",
            "look at the log of p:1; restart",
        ),
        (None, BROKEN, "the decode leg failed: the connection ended early", REMEDY),  # prefill was cancelled
        (OK, BROKEN, "the decode leg failed: the connection ended early", REMEDY),
        (BROKEN, BROKEN, "the prefill leg failed", "look at the log of p:1"),
        (LegEnd("status 500", 500), None, "the prefill leg failed: status 500", "look at the log of p:1"),
        (OK, LegEnd("status 400", 400), "the decode leg failed: status 400", "the same model files"),
        (OK, None, "the decode leg was not sent", "look at the engines' logs"),
        (None, None, "the prefill leg was not sent", "look at the engines' logs"),
    ],
)
def test_the_leg_that_failed_is_told(
    prefill: LegEnd | None, decode: LegEnd | None, words: str, remedy: str
) -> None:
    tried = TriedPair("p:1", "d:1", 40, prefill_leg=prefill, decode_leg=decode)
    found = judged(tried, unreachable=REMEDY, itself=("", ""))
    assert (found.step, found.status) == ("hand_over", Status.FAIL)
    assert found.words.startswith(words)
    assert remedy in (found.remedy or "")


@pytest.mark.parametrize(
    ("connector", "mends"), [("nixl", "VLLM_NIXL_SIDE_CHANNEL_HOST"), ("shared", "the store")]
)
def test_each_connector_has_its_own_remedy(connector: str, mends: str) -> None:
    tried = TriedPair("p:1", "d:1", 40, prefill_leg=OK, decode_leg=BROKEN)
    [*_, found] = CONNECTORS[connector]().judge_pair(tried)
    assert mends in (found.remedy or "")
    assert ("NIXL" in (found.remedy or "")) is (connector == "nixl")
