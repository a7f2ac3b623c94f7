"""An engine is asked what it says of requests outside any request, once, for a bounded time and answer."""

import logging
from typing import Protocol

import msgspec

from proxy.errors import LegError
from proxy.instances import Instance
from proxy.tokenizing.comparison import Engines as Posting
from proxy.tokenizing.engine_facts import EngineFacts
from proxy.tokenizing.schemas import MAX_SCHEMA_BYTES, Schema, read_schema
from proxy.tokenizing.tool_choices import COUNT_PATH, judge, questions

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 15.0
"""vLLM makes its schema when it is asked for the first time: 0.8 s on a quiet machine, in its own event loop."""

_MAX_VERSION_CHARACTERS = 64


class Engines(Posting, Protocol):
    """The part of the engine client needed here."""

    async def get_bounded(
        self, instance: str, path: str, timeout_s: float, most_bytes: int
    ) -> tuple[int, bytes]:
        """Status and body of an answer of at most so many bytes. Raises LegError."""
        ...


class _Version(msgspec.Struct):
    version: str


class _Count(msgspec.Struct):
    input_tokens: int


async def find_facts(facts: EngineFacts, engines: Engines, instance: Instance) -> bool:
    """Ask an engine what is wanted and not known of it. False if it did not answer."""
    try:
        if facts.lacks_schema(instance.address):
            await _find_schema(facts, engines, instance.address)
        if facts.lacks_choices(instance.address):
            await _find_choices(facts, engines, instance)
    except (LegError, TimeoutError):
        return False
    return True


async def _find_schema(facts: EngineFacts, engines: Engines, address: str) -> None:
    status, data = await engines.get_bounded(address, "/version", ASK_TIMEOUT_S, 1 << 16)
    version = f"unknown, {address}"
    if status == 200:
        try:
            version = msgspec.json.decode(data, type=_Version).version[:_MAX_VERSION_CHARACTERS]
        except (msgspec.DecodeError, UnicodeDecodeError):
            log.info("%s tells no version", address)
    if facts.runs(address, version):
        return
    status, data = await engines.get_bounded(address, "/openapi.json", ASK_TIMEOUT_S, MAX_SCHEMA_BYTES)
    schema: Schema | None = None
    why = f"status {status}"
    if status == 200:
        try:
            schema = read_schema(data)
        except ValueError as error:
            why = str(error)
    if schema is None:
        log.info(
            "%s tells no schema of its requests (%s): members unknown here are taken as ignored", address, why
        )
    facts.learn_schema(address, version, schema)


async def _find_choices(facts: EngineFacts, engines: Engines, instance: Instance) -> None:
    models = sorted(instance.models - instance.adapters)
    counts = {
        name: await _count(engines, instance.address, body)
        for name, body in (questions(models[0]) if models else {}).items()
    }
    facts.learn_choices(instance.address, judge(counts))


async def _count(engines: Engines, address: str, body: bytes) -> int | None:
    answer = await engines.post(address, COUNT_PATH, body, [])
    try:
        data = await answer.read()
    finally:
        answer.close()
    try:
        return msgspec.json.decode(data, type=_Count).input_tokens if answer.status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
