"""A hold nobody pulls is kept for its lease, then freed and counted."""

import aiohttp

from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import Engine
from tests.contract.unclaimed import BLOCKS, EXPIRED, SEQUENCES, Unclaimed
from tests.fleets import LEASE_S


def test_a_streamed_prefill_leg_loses_its_params(unclaimed: Unclaimed) -> None:
    assert unclaimed.streamed.endswith("data: [DONE]\n\n")
    assert "kv_transfer_params" not in unclaimed.streamed


def test_two_prompts_have_the_params_of_the_first(unclaimed: Unclaimed) -> None:
    params = unclaimed.listed["kv_transfer_params"]
    assert len(unclaimed.listed["choices"]) == 2
    assert params["remote_num_tokens"] == 40
    assert params["remote_request_id"].startswith(f"{unclaimed.listed['id']}-0-")


async def test_a_lease_ends_by_itself(unclaimed: Unclaimed, session: aiohttp.ClientSession) -> None:
    prefill = Engine(unclaimed.spec, session)
    assert round(unclaimed.held * prefill.blocks) == BLOCKS

    async def all_expired() -> bool:
        return await prefill.metric(EXPIRED) - unclaimed.expired_before == SEQUENCES

    await wait_until(all_expired, 2 * LEASE_S, "every sequence that was held has expired")
    await prefill.at_rest()
