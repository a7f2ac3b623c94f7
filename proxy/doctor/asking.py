"""Questions to an engine never raise: what comes back is an answer, or trouble in words."""

import math
from typing import Any, Protocol

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from proxy.caches.event_addresses import read_sources
from proxy.caches.told import NotAllowedError, ToldRules
from proxy.doctor.facts import Answer, Metrics, Trouble
from proxy.errors import ConnectFailedError, DeadlineError, LegError
from proxy.headers import Headers
from proxy.upstream.metrics_page import lines_of

MAX_WORDS = 300
"""Of an engine's own error message."""


class Engines(Protocol):
    """The part of the engine client needed here."""

    async def exchange(
        self,
        method: str,
        instance: str,
        path: str,
        body: bytes | None,
        timeout_s: float,
        headers: Headers | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of an engine's answer; raises LegError."""
        ...


async def ask(
    engines: Engines,
    instance: str,
    path: str,
    timeout_s: float,
    body: Any = None,
    headers: Headers | None = None,
) -> Answer:
    """The bytes of an answer with status 200; POST if there is a `body`."""
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


def read(answer: Answer, shape: Any) -> Answer:
    """The answer as JSON of that shape, or trouble."""
    if not answer.ok:
        return answer
    try:
        return Answer(value=msgspec.json.decode(answer.value, type=shape))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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


class _Version(msgspec.Struct):
    version: str


class _Card(msgspec.Struct):
    id: str
    parent: str | None = None
    root: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Card]


def read_version(answer: Answer) -> Answer:
    """The version in an answer of `/version`."""
    found = read(answer, _Version)
    return Answer(value=found.value.version) if found.ok else found


class _Sleep(msgspec.Struct):
    is_sleeping: bool


def read_asleep(answer: Answer) -> bool | None:
    """The answer of `/is_sleeping`; None if it is no such answer."""
    found = read(answer, _Sleep)
    return bool(found.value.is_sleeping) if found.ok else None


def read_cards(answer: Answer) -> Answer:
    """The cards in an answer of `/v1/models`."""
    found = read(answer, _Models)
    return Answer(value=[msgspec.structs.asdict(card) for card in found.value.data]) if found.ok else found


def read_told_sources(answer: Answer, host: str, rules: ToldRules) -> Answer:
    """The sources in an answer of `/kv_event_sources`."""
    found = read(answer, Any)
    if not found.ok:
        return found
    try:
        return Answer(value=read_sources(found.value, host, rules))
    except NotAllowedError as error:
        return Answer(trouble=Trouble.NOT_ALLOWED, words=str(error))
    except ValueError as error:
        return Answer(trouble=Trouble.BROKEN, words=str(error))


_PROMPT = "vllm:prompt_tokens_total"
_SOURCE = "vllm:prompt_tokens_by_source_total"
_CONNECTOR = "vllm:external_prefix_cache_queries_total"
_FAILED = "vllm:nixl_num_failed_transfers_total"
_CACHE = "vllm:cache_config_info"


def read_metrics(answer: Answer) -> Answer:
    """What of a Prometheus page concerns us."""
    if not answer.ok:
        return answer
    totals: dict[str, float] = {}
    by_source: dict[str, float] = {}
    cache: dict[str, str] = {}
    try:
        page = answer.value.decode()
        names = (_PROMPT, _SOURCE, _CONNECTOR, _FAILED, _CACHE)
        wanted = [line for name in names for line in lines_of(page, name)]
        for family in text_string_to_metric_families("\n".join([*wanted, ""])):
            for sample in family.samples:
                if not math.isfinite(sample.value):
                    continue
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
                if sample.name == _SOURCE:
                    source = sample.labels.get("source", "")
                    by_source[source] = by_source.get(source, 0.0) + sample.value
                elif sample.name == _CACHE:
                    cache = sample.labels
    except ValueError:
        return Answer(trouble=Trouble.BROKEN, words="its /metrics is not a page for Prometheus")
    size = cache.get("block_size", "")
    caching = {"true": True, "false": False}.get(cache.get("enable_prefix_caching", "").lower())
    return Answer(
        value=Metrics(
            block_size=int(size) if size.isascii() and size.isdecimal() and int(size) else None,
            prefix_caching=caching,
            prompt_tokens=totals.get(_PROMPT),
            by_source=by_source or None,
            asked_connector=totals.get(_CONNECTOR),
            failed_transfers=totals.get(_FAILED, 0.0),
        )
    )
