"""An engine is asked how it reads requests outside of any request, once, with a bounded time and answer.

A refusal is an answer. If the engine is busy, or fails, it is asked again.
"""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable

import msgspec

from proxy.errors import LegBrokenError, LegError
from proxy.fleet import Instance
from proxy.logs import quoted
from proxy.tokenizing.engine_facts import EngineFacts
from proxy.tokenizing.schemas import MAX_SCHEMA_BYTES, Schema, read_schema
from proxy.tokenizing.tool_choices import COUNT_PATH, judge, questions
from proxy.upstream.engine_api.about import VERSION
from proxy.upstream.engine_api.asking import Asker, UnreadableError

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 15.0
"""Seconds for an answer: vLLM makes its schema when it is first asked for it, in 0.8 s on a quiet machine,
within its own event loop."""

_SMALL_BYTES = 1 << 16
"""The most bytes of a small answer: far more than a version or a count has."""


class _Count(msgspec.Struct):
    input_tokens: int


class FactFinder:
    """Asks engines what is wanted and not known of them."""

    def __init__(self, facts: EngineFacts, engines: Asker, *, timeout_s: float = ASK_TIMEOUT_S) -> None:
        """`timeout_s`: seconds for each answer."""
        self._facts = facts
        self._engines = engines
        self._timeout_s = timeout_s
        self._schema_turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def lacks(self, instance: Instance) -> bool:
        """Whether something is wanted and not known of an engine."""
        return self._facts.lacks_schema(instance.address) or self._facts.lacks_choices(instance.address)

    async def find(self, instance: Instance) -> bool:
        """Ask an engine what is wanted and not known of it. Returns False if any answer is missing."""
        found = True
        if self._facts.lacks_schema(instance.address):
            found = await _answered(self._find_schema, instance)
        if self._facts.lacks_choices(instance.address):
            found = await _answered(self._find_choices, instance) and found
        return found

    async def _find_schema(self, instance: Instance) -> None:
        address = instance.address
        status, data = await self._ask("GET", address, VERSION.path)
        version = f"unknown, {address}"
        if status == 200:
            try:
                version = VERSION.read(data)
            except UnreadableError:
                log.info("%s tells no version", address)
        # To make a schema costs the engine much, and one for each version is enough: others wait for the
        # first one's.
        turn = self._schema_turns.setdefault(version, asyncio.Lock())
        async with turn:
            if not self._facts.runs(address, version):
                await self._ask_schema(address, version)

    async def _ask_schema(self, address: str, version: str) -> None:
        status, data = await self._ask("GET", address, "/openapi.json", max_bytes=MAX_SCHEMA_BYTES)
        schema: Schema | None = None
        why = f"status {status}"
        if status == 200:
            try:
                schema = read_schema(data)
            except ValueError as error:
                why = str(error)
        if schema is None:
            log.info(
                "%s tells no schema of its requests (%s): members unknown here are taken as ignored",
                address, quoted(why),
            )  # fmt: skip
        self._facts.learn_schema(address, version, schema)

    async def _find_choices(self, instance: Instance) -> None:
        models = sorted(instance.models - instance.adapters)
        counts = {
            name: await self._count(instance.address, body)
            for name, body in (questions(models[0]) if models else {}).items()
        }
        self._facts.learn_choices(instance.address, judge(counts))

    async def _count(self, address: str, body: bytes) -> int | None:
        """A prompt's length as an engine counts it; None if it refuses to count."""
        status, data = await self._ask("POST", address, COUNT_PATH, body)
        try:
            return msgspec.json.decode(data, type=_Count).input_tokens if status == 200 else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    async def _ask(
        self,
        method: str,
        address: str,
        path: str,
        body: bytes | None = None,
        *,
        max_bytes: int = _SMALL_BYTES,
    ) -> tuple[int, bytes]:
        """An engine's answer or refusal. Raises LegError, also for a status that does not show what the
        engine can do.
        """
        status, data = await self._engines.exchange(
            method, address, path, body, self._timeout_s, max_bytes=max_bytes
        )
        if status == 429 or not (status == 200 or 400 <= status < 500):
            raise LegBrokenError(address, f"status {status} for {path}")
        return status, data


async def _answered(ask: Callable[[Instance], Awaitable[None]], instance: Instance) -> bool:
    try:
        await ask(instance)
    except LegError:
        return False
    return True
