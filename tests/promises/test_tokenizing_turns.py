"""No client's short prompt waits for another's long one to be tokenized."""

import asyncio
import pathlib
import random
import string

from proxy.edge.app_keys import SERVICE
from proxy.simulation.api.model_files import write_model
from proxy.tokenizing.local.turns import SLICE_BYTES
from proxy.tokenizing.shown import TokenizerShown
from tests.helpers.service import UNHURRIED, Service, fleet, wait_until


def tokenizer_status(service: Service) -> TokenizerShown:
    return service.app[SERVICE].tokenizer.status()


def unlike(characters: int, seed: int) -> str:
    """Text of which no piece occurs twice."""
    rng = random.Random(seed)
    letters = rng.choices(string.ascii_lowercase, k=characters)
    return "".join(" " if n % 8 == 7 else letter for n, letter in enumerate(letters))


async def test_long_prompts_of_others_do_not_hold_up_a_short_one(tmp_path: pathlib.Path) -> None:
    write_model(tmp_path)
    roomy = UNHURRIED | {"max_model_len": 1_000_000, "blocks": 62_502}
    async with fleet(prefill=1, decode=1, stand_in=roomy, tokenizer=str(tmp_path), kv_events=False) as pair:
        service = pair.service
        await wait_until(lambda: len(tokenizer_status(service).checked_with) == 2, "the comparison")

        def tokenized() -> int:
            pieces = tokenizer_status(service).pieces
            assert pieces is not None
            return pieces.missed_characters

        before, size = tokenized(), 20 * SLICE_BYTES
        loop = asyncio.get_running_loop()
        long = [loop.create_task(service.complete(unlike(size, seed), max_tokens=1)) for seed in range(3)]
        await wait_until(lambda: tokenized() > before, "the first slice of a long text")
        short = loop.create_task(service.complete(unlike(10_000, 9), max_tokens=1))
        await wait_until(lambda: len(pair.engines.prefill[0].seen) > 0, "the first leg")
        assert tokenized() - before < 1.5 * size
        assert (await short).status == 200
        for task in long:
            task.cancel()
        await asyncio.wait(long)
        await service.settled()
