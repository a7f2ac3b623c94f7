"""The doctor's probe has a length that every connector can hand over, whatever the engine's template adds to
it."""

from typing import Any

import msgspec
import pytest

from kvevents.subscriber import Context
from proxy.caches.address_rules import AddressRules
from proxy.config import parse_instance
from proxy.doctor.facts import Answer, EngineFacts, RankFacts
from proxy.doctor.probing import Probing
from proxy.phases import Role
from proxy.tasks import TaskOwner
from proxy.upstream.engine_api.metrics import Counted


class Engines:
    def __init__(self, template: int) -> None:
        self._template = template

    async def exchange(
        self, method: str, instance: str, path: str, body: bytes, timeout_s: float, *_: Any, **__: Any
    ) -> tuple[int, bytes]:
        assert (method, instance, path) == ("POST", "engine:8000", "/tokenize")
        words = msgspec.json.decode(body)["messages"][0]["content"].split()
        return 200, msgspec.json.encode({"tokens": [*range(self._template), *[7] * len(words)]})


async def probe_tokens(template: int, block_size: int | None) -> int:
    facts = EngineFacts(
        parse_instance("engine:8000", Role.PREFILL), metrics=Answer(value=Counted(block_size=block_size))
    )
    engines: Any = Engines(template)
    context, tasks = Context(), TaskOwner("probing")
    rank = RankFacts(rank=0)
    try:
        probing = Probing(
            facts,
            engines,
            "tiny",
            kv_events=True,
            rules=AddressRules(),
            context=context,
            tasks=tasks,
            service=None,
        )
        assert await probing._make(rank, None) is not None
    finally:
        await tasks.close()
        context.term()
    return len(rank.token_ids)


@pytest.mark.parametrize(
    ("block_size", "told"),
    [*((size, True) for size in (4, 8, 16, 32, 128)), *((size, False) for size in (16, 32, 128))],
)
async def test_a_probe_is_never_one_token_longer_than_whole_blocks(block_size: int, told: bool) -> None:
    for template in range(2 * block_size):
        tokens = await probe_tokens(template, block_size if told else None)
        assert tokens > 2 * block_size
        assert tokens % block_size != 1
