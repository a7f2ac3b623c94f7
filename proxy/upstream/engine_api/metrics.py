"""An engine's `/metrics` page tells how many blocks its cache has, whether sleep has emptied it, what runs
there, and what the engine has counted.

Reading one series costs no more than one search through the page, whatever the page holds.
"""

import enum
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from proxy.fleet import MAX_RANKS
from proxy.upstream.engine_api.asking import Question, UnreadableError

MAX_LINE_CHARS = 8192
"""Longer lines are skipped; the longest of vLLM has some hundred characters."""

MAX_LINES = 4096
"""The most lines of one name that are read: vLLM writes a few for each rank."""


def _read(data: bytes) -> str:
    return data.decode(errors="replace")


METRICS: Question[str] = Question("/metrics", _read)
"""Its answer is the page, for the functions of this file."""


def lines_of(page: str, name: str) -> Iterator[str]:
    """The lines of a page that begin with `name`, at most MAX_LINES, without those over MAX_LINE_CHARS."""
    at = 0 if page.startswith(name) else page.find("\n" + name) + 1 or -1
    for _ in range(MAX_LINES):
        if at < 0:
            return
        end = page.find("\n", at)
        line = page[at:] if end < 0 else page[at:end]
        if len(line) <= MAX_LINE_CHARS:
            yield line.rstrip("\r")
        if end < 0:
            return
        at = end + 1 if page.startswith(name, end + 1) else page.find("\n" + name, end) + 1 or -1


# -- the cache's room ---------------------------------------------------------------------------------------

_CACHE = "vllm:cache_config_info"
_LABEL = re.compile(r'[{,](engine|num_gpu_blocks)="([^"\\]{0,12})"')


def read_capacities(page: str) -> dict[int, int]:
    """How many blocks the cache of each rank has, block 0 included, which never holds anything.

    With internal load balancing over data-parallel ranks vLLM gives the sum of all ranks for each of them.
    """
    found = {}
    for line in lines_of(page, _CACHE + "{"):
        labels = dict(_LABEL.findall(line))
        rank, blocks = labels.get("engine") or "0", labels.get("num_gpu_blocks", "")
        if _is_number(rank) and _is_number(blocks) and int(rank) < MAX_RANKS and int(blocks):
            found[int(rank)] = int(blocks)
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


# -- sleep --------------------------------------------------------------------------------------------------

_SLEEP = "vllm:engine_sleep_state{"
_STATE = re.compile(r'[{,]sleep_state="(\w{1,20})"')


class Depth(enum.StrEnum):
    """What sleep has done to an engine's cache."""

    LIGHT = "light"
    """Level 0, or the engine still finishes what was running: its cache is as it was."""
    DEEP = "deep"
    """Level 1 or 2: its cache is empty, and nothing runs any more."""
    UNTOLD = "untold"
    """The page has no such series."""


def read_depth(page: str) -> Depth:
    """How deeply an engine sleeps that says it sleeps: DEEP if any of its ranks has lost its cache."""
    states = []
    for line in lines_of(page, _SLEEP):
        labels, _, value = line.rpartition("} ")
        if (state := _STATE.search(labels)) is not None and value in {"0", "0.0", "1", "1.0"}:
            states.append((state[1], value[0] == "1"))
    if not states:
        return Depth.UNTOLD
    deep = any(is_so for name, is_so in states if name in {"weights_offloaded", "discard_all"})
    return Depth.DEEP if deep else Depth.LIGHT


# -- what runs ----------------------------------------------------------------------------------------------

_RUNNING = b"\nvllm:num_requests_running{"
_WAITING = b"\nvllm:num_requests_waiting{"
_KV_USE = b"\nvllm:kv_cache_usage_perc{"
_ADAPTERS = b"\nvllm:lora_requests_info{"
_ADAPTER_LABEL = re.compile(rb'[{,](max_lora|running_lora_adapters|waiting_lora_adapters)="([^"\\]{0,4096})"')

MAX_VALUE_CHARS = 32
MAX_COUNT = 1e9
"""An engine that says that it runs more does not say what it runs."""


class Busy(NamedTuple):
    """What runs on an engine."""

    running: int
    """Requests in its batch; as `waiting`, of all ranks together."""
    waiting: int
    """Requests in its queue."""
    kv_use: float
    """The share of its KV blocks in use; of several ranks the highest. 0 if it does not tell."""
    adapter_slots: int = 0
    """How many LoRA adapters a batch may have; 0 if it does not tell, as before its first request."""
    adapters: frozenset[str] = frozenset()
    """The adapters in the batch; those of requests that wait for their first turn are not told."""


def read_busy(page: bytes) -> Busy:
    """What a page says of what runs; unlike the other functions it reads bytes, since it is asked often.

    Raises UnreadableError if the page does not say.
    """
    running, waiting = _values(page, _RUNNING), _values(page, _WAITING)
    if not running or not waiting:
        raise UnreadableError("its /metrics does not say how many requests it runs")
    kv_use = max(_values(page, _KV_USE), default=0.0)
    return Busy(int(sum(running)), int(sum(waiting)), min(kv_use, 1.0), *_adapters(page))


def _adapters(page: bytes) -> tuple[int, frozenset[str]]:
    """How many adapters a batch may have, and which there are. What was so once stays on the page: the latest
    counts, whose value is the highest.
    """
    latest, last = b"", 0.0
    for line in islice(_lines(page, _ADAPTERS), MAX_LINES):
        try:
            at = float(line.rpartition(b"} ")[2])
        except ValueError:
            continue
        if at > last:
            latest, last = line, at
    labels = dict(_ADAPTER_LABEL.findall(latest))
    slots = labels.get(b"max_lora", b"")
    if not slots.isdigit():
        return 0, frozenset()
    names = b",".join((labels.get(b"running_lora_adapters", b""), labels.get(b"waiting_lora_adapters", b"")))
    return int(slots), frozenset(filter(None, names.decode(errors="replace").split(",")))


def _values(page: bytes, name: bytes) -> list[float]:
    """The finite values of a series from 0 on, of at most MAX_RANKS ranks."""
    found: list[float] = []
    for line in _lines(page, name):
        word = line.rpartition(b"} ")[2].strip()
        try:
            value = float(word) if len(word) <= MAX_VALUE_CHARS else math.nan
        except ValueError:
            value = math.nan
        if 0 <= value < MAX_COUNT:
            found.append(value)
        if len(found) == MAX_RANKS:
            break
    return found


def _lines(page: bytes, name: bytes) -> Iterator[bytes]:
    """The lines of a page that begin with `name`, which begins with the end of the line before."""
    at = page.find(name)
    while at >= 0:
        end = page.find(b"\n", at + 1)
        yield page[at + 1 : end] if end >= 0 else page[at + 1 :]
        at = page.find(name, end) if end >= 0 else -1


BUSY: Question[Busy] = Question("/metrics", read_busy)


# -- what was counted ---------------------------------------------------------------------------------------

_PROMPT = "vllm:prompt_tokens_total"
_SOURCE = "vllm:prompt_tokens_by_source_total"
_CONNECTOR = "vllm:external_prefix_cache_queries_total"
_FAILED = "vllm:nixl_num_failed_transfers_total"


class Counted(msgspec.Struct, frozen=True):
    """What an engine has counted since it started, summed over its ranks, and how its cache is set up.

    None where the engine has no such series.
    """

    block_size: int | None = None
    """In tokens."""
    prefix_caching: bool | None = None
    """Whether prefix caching is on."""
    prompt_tokens: float | None = None
    by_source: dict[str, float] | None = None
    """Prompt tokens by where their KV came from."""
    asked_connector: float | None = None
    """Tokens for which the engine asked its connector; None if it has no connector."""
    failed_transfers: float = 0.0
    """NIXL transfers that failed."""


def read_counted(page: str) -> Counted:
    """The counters of a page. Raises UnreadableError if it is not in Prometheus' text format."""
    totals: dict[str, float] = {}
    by_source: dict[str, float] = {}
    cache: dict[str, str] = {}
    names = (_PROMPT, _SOURCE, _CONNECTOR, _FAILED, _CACHE)
    wanted = [line for name in names for line in lines_of(page, name)]
    try:
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
        raise UnreadableError("its /metrics is not a page for Prometheus") from None
    size = cache.get("block_size", "")
    return Counted(
        block_size=int(size) if size.isascii() and size.isdecimal() and int(size) else None,
        prefix_caching={"true": True, "false": False}.get(cache.get("enable_prefix_caching", "").lower()),
        prompt_tokens=totals.get(_PROMPT),
        by_source=by_source or None,
        asked_connector=totals.get(_CONNECTOR),
        failed_transfers=totals.get(_FAILED, 0.0),
    )
