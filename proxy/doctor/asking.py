"""Questions to an engine never raise: what comes back is an answer, or trouble in words."""

from collections.abc import Callable
from typing import Any

import msgspec

from proxy.caches.address_rules import AddressRules, NotAllowedError
from proxy.caches.event_addresses import read_sources
from proxy.doctor.facts import Answer, Trouble
from proxy.errors import ConnectFailedError, DeadlineError, LegError
from proxy.headers import Headers
from proxy.upstream.engine_api import metrics
from proxy.upstream.engine_api.asking import Asker, UnreadableError
from proxy.upstream.engine_api.event_sources import EVENT_SOURCES

MAX_WORDS = 300
"""The most characters of an engine's own error message."""


async def ask(
    engines: Asker,
    instance: str,
    path: str,
    timeout_s: float,
    body: Any = None,
    headers: Headers | None = None,
) -> Answer:
    """The bytes of an answer with status 200, or trouble; sends POST if there is a `body`."""
    method = "GET" if body is None else "POST"
    data = None if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
    try:
        status, answer = await engines.exchange(method, instance, path, data, timeout_s, headers)
    except DeadlineError as error:
        return Answer(trouble=Trouble.SILENT, words=error.words)
    except ConnectFailedError as error:
        return Answer(trouble=Trouble.REFUSED, words=error.words)
    except LegError as error:
        return Answer(trouble=Trouble.BROKEN, words=error.words)
    if status != 200:
        return Answer(trouble=Trouble.STATUS, status=status, words=f"status {status}{_message(answer)}")
    return Answer(value=answer)


def read(answer: Answer, reader: Callable[[bytes], Any]) -> Answer:
    """The answer as `reader` reads it, or trouble; `reader` raises UnreadableError."""
    if not answer.ok:
        return answer
    try:
        return Answer(value=reader(answer.value))
    except UnreadableError:
        return Answer(trouble=Trouble.BROKEN, words="its answer is not what vLLM answers")


class _Error(msgspec.Struct):
    message: str = ""


class _Failure(msgspec.Struct):
    error: _Error


def _message(answer: bytes) -> str:
    try:
        message = msgspec.json.decode(answer, type=_Failure).error.message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return f" ({' '.join(message.split())[:MAX_WORDS]})" if message else ""


def read_event_sources(answer: Answer, host: str, rules: AddressRules) -> Answer:
    """The sources in an answer of `/kv_event_sources`."""
    found = read(answer, EVENT_SOURCES.read)
    if not found.ok:
        return found
    try:
        return Answer(value=read_sources(found.value, host, rules))
    except NotAllowedError as error:
        return Answer(trouble=Trouble.NOT_ALLOWED, words=str(error))
    except ValueError as error:
        return Answer(trouble=Trouble.BROKEN, words=str(error))


def read_counted(answer: Answer) -> Answer:
    """The counts in an answer of `/metrics`."""
    if not answer.ok:
        return answer
    try:
        return Answer(value=metrics.read_counted(metrics.METRICS.read(answer.value)))
    except UnreadableError as error:
        return Answer(trouble=Trouble.BROKEN, words=str(error))
