"""If the policy reads no prompt, no engine is asked for a prompt's tokens."""

from typing import Any

import pytest

from proxy.config import Admission
from proxy.scheduling.policies import POLICIES
from tests.helpers.service import Pair, fleet, prose

HELLO = [{"role": "user", "content": prose(40, 1)}]


def asked(pair: Pair) -> int:
    return sum(seen.path == "/tokenize" for engine in pair.engines.all for seen in engine.seen)


@pytest.mark.parametrize("policy", ["round_robin", "least_load", "power_of_two", "random", "session"])
async def test_no_engine_tokenizes_for_a_policy_that_reads_no_prompt(policy: str) -> None:
    async with fleet(policy=POLICIES[policy]()) as pair:
        before = asked(pair)
        for _ in range(4):
            assert (await pair.service.chat(HELLO)).status == 200
            assert (await pair.service.complete(prose(40, 2))).status == 200
        assert asked(pair) == before


async def test_explain_shows_the_prompt_all_the_same() -> None:
    async with fleet(policy=POLICIES["round_robin"]()) as pair:
        told = await pair.service.explain({"model": "tiny", "messages": HELLO})
        assert told["prompt_tokens"] > 0
        assert asked(pair) > 0


@pytest.mark.parametrize("limits", [{"max_prefill_tokens": 4096}, {"max_decode_tokens": 4096}])
async def test_with_limits_on_tokens_engines_are_asked_all_the_same(limits: dict[str, Any]) -> None:
    async with fleet(policy=POLICIES["round_robin"](), admission=Admission(**limits)) as pair:
        assert (await pair.service.chat(HELLO)).status == 200
        assert asked(pair) > 0
