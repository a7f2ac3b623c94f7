"""A prefill and a decode engine and the two legs between them, as kvproxy asks them."""

import contextlib
from typing import Any

from scripts.workshop.live.asking import COMPLETIONS, Answer
from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import Engine

PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}
_DECODE_ONLY = {"stream", "stream_options", "n", "min_tokens", "max_completion_tokens"}
FREED_S = 5
"""A hold is freed within milliseconds of what frees it; the rest is for a busy machine."""


class Pair:
    """Prefill here, decode there; `plain` says what is right."""

    def __init__(self, prefill: Engine, decode: Engine, plain: Engine) -> None:
        self.prefill = prefill
        self.decode = decode
        self.plain = plain

    async def leg(self, body: dict[str, Any], path: str = COMPLETIONS) -> Answer:
        """The prefill leg of a request."""
        kept = {key: value for key, value in body.items() if key not in _DECODE_ONLY}
        changed = {"max_tokens": 1, "kv_transfer_params": PREFILL}
        return await self.prefill.served(kept | changed, path)

    async def prefilled(self, body: dict[str, Any], path: str = COMPLETIONS) -> dict[str, Any]:
        """The params that the prefill leg of a request hands on."""
        params: dict[str, Any] = (await self.leg(body, path)).json["kv_transfer_params"]
        return params

    async def decoded(self, body: dict[str, Any], params: dict[str, Any], path: str = COMPLETIONS) -> Answer:
        """The decode leg."""
        return await self.decode.served(body | {"kv_transfer_params": params}, path)

    async def served(self, body: dict[str, Any], path: str = COMPLETIONS) -> Answer:
        """Both legs."""
        return await self.decoded(body, await self.prefilled(body, path), path)

    async def refused(self, params: dict[str, Any]) -> None:
        """A decode leg that cannot be served."""
        body = {"model": "no-such-model", "prompt": "x", "max_tokens": 1, "kv_transfer_params": params}
        assert (await self.decode.ask(body)).status == 404

    async def held(self) -> int:
        """Blocks in use on the prefill engine."""
        return await self.prefill.used_blocks()

    async def freed(self) -> None:
        """Wait until the prefill engine holds nothing."""

        async def nothing() -> bool:
            return not await self.held()

        await wait_until(nothing, FREED_S, "the prefill engine holds nothing")

    async def stays(self, blocks: int) -> None:
        """The prefill engine still holds that much, for as long as it has needed to free anything."""
        with contextlib.suppress(TimeoutError):

            async def fewer() -> bool:
                return await self.held() != blocks

            await wait_until(fewer, 0.5, "something was freed")
            raise AssertionError(f"{blocks} blocks were held, and now {await self.held()}")
