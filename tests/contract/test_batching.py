"""Requests that run together are answered as if each ran alone, also when the cache is too small for all."""

import asyncio

from scripts.workshop.live.asking import CHAT
from tests.contract.asking import Engine
from tests.contract.prompts import chat, ids, text

AT_ONCE = 16  # --max-num-seqs


async def test_company_changes_no_answer(engine: Engine) -> None:
    bodies = [ids(20 + 7 * n, f"company {n}", 12) for n in range(AT_ONCE + 4)]
    together = await asyncio.gather(*(engine.served(body) for body in bodies))
    alone = [await engine.served(body) for body in bodies]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


async def test_both_paths_share_a_batch(engine: Engine) -> None:
    asked = [engine.served(text(f"mixed {n}", 12, stream=bool(n % 2))) for n in range(4)]
    asked += [engine.served(chat(f"mixed {n}", 12, stream=bool(n % 2)), CHAT) for n in range(4)]
    answers = await asyncio.gather(*asked)
    assert len({answer.text for answer in answers}) == 8


async def test_who_is_preempted_says_the_same_later(engine: Engine) -> None:
    """Prompts that fit just so, and answers that do not."""
    await engine.at_rest()
    length = engine.blocks * 32 // AT_ONCE // 32 * 32 - 33
    bodies = [ids(length, f"preempted {n}", 100) for n in range(AT_ONCE)]
    before = await engine.metrics()
    together = await asyncio.gather(*(engine.served(body) for body in bodies))
    after = await engine.metrics()
    name = "vllm:num_preemptions_total"
    assert after.total(name) > before.total(name)
    success = "vllm:request_success_total"
    assert after.total(success) - before.total(success) == AT_ONCE
    for index in (0, AT_ONCE - 1):
        assert (await engine.served(bodies[index])).text == together[index].text
    await engine.at_rest()
