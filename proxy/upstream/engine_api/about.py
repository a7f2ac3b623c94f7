"""An engine says of its own state whether it lives, which release it is, and whether it sleeps.

vLLM serves `/is_sleeping` only with VLLM_SERVER_DEV_MODE=1; an engine without that route cannot be put to
sleep by HTTP.
"""

from typing import Annotated

import msgspec

from proxy.errors import LegBrokenError
from proxy.upstream.engine_api.asking import Asker, Question, decode, read

HEALTH = "/health"
"""vLLM answers 200 with no body, and 503 once its core is dead."""

IS_SLEEPING = "/is_sleeping"

MAX_VERSION_CHARS = 200


async def health(engines: Asker, instance: str, timeout_s: float) -> int:
    """The status of the answer to `/health`. Raises LegError if there is none."""
    status, _ = await engines.exchange("GET", instance, HEALTH, None, timeout_s)
    return status


class _Version(msgspec.Struct):
    version: Annotated[str, msgspec.Meta(max_length=MAX_VERSION_CHARS)]


def _read_version(data: bytes) -> str:
    return decode("/version", data, _Version).version


VERSION: Question[str] = Question("/version", _read_version)
"""The vLLM release."""


class _Sleep(msgspec.Struct):
    is_sleeping: bool


def _read_sleep(data: bytes) -> bool:
    return decode(IS_SLEEPING, data, _Sleep).is_sleeping


async def asleep(engines: Asker, instance: str, timeout_s: float) -> bool | None:
    """Whether an engine says that it sleeps; None if it cannot sleep. Raises LegError if it does not say."""
    status, data = await engines.exchange("GET", instance, IS_SLEEPING, None, timeout_s)
    if status == 200:
        return read(instance, _read_sleep, data)
    if status < 500:
        return None
    raise LegBrokenError(instance, f"status {status} for {IS_SLEEPING}")
