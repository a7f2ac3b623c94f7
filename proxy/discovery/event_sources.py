"""Where an engine says it publishes becomes where we connect, or bind; what cannot be read is an error, not silence."""

import ipaddress
import urllib.parse
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from kvevents import SourceAddress
from proxy.config import InstanceSpec
from proxy.instances import MOST_RANKS


def told_sources(spec: InstanceSpec) -> list[SourceAddress]:
    """The sources that an instance was named with."""
    return [
        SourceAddress(
            rank=told.rank,
            endpoint=told.endpoint,
            replay_endpoint=told.replay_endpoint,
            topic=told.topic,
            bind=_is_wildcard(told.endpoint),
        )
        for told in spec.event_sources
    ]


_Rank = Annotated[int, msgspec.Meta(ge=0, lt=MOST_RANKS)]


class _Source(msgspec.Struct):
    endpoint: str
    replay_endpoint: str | None = None
    topic: str | None = None
    data_parallel_rank: _Rank | None = None
    dp_rank: _Rank | None = None
    rank: _Rank | None = None

    @property
    def named_rank(self) -> int | None:
        return next((n for n in (self.data_parallel_rank, self.dp_rank, self.rank) if n is not None), None)


def read_sources(answer: Any, host: str) -> list[SourceAddress]:
    """The sources in an engine's answer to `GET /kv_event_sources`.

    Either an object, rank as text -> endpoints (vLLM 0.32), or an array of them that name their ranks themselves; those
    that do not have their place in it as rank.

    A wildcard endpoint is bound by the engine, so it is reached at the instance's own host. To any other the
    engine connects, and the subscriber binds - unless it names the very host the instance is reached at, not
    loopback: that is what an engine tells that was asked to find a free port of its own. Raises ValueError if it
    is not such an answer, names a rank from MOST_RANKS on, or one rank twice.
    """
    try:
        told = _numbered(answer) if isinstance(answer, list) else _by_rank(answer)
        return [_address(rank, source, host) for rank, source in sorted(told.items())]
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"not an answer of /kv_event_sources: {error}") from None


def _by_rank(answer: Any) -> Mapping[int, _Source]:
    return msgspec.convert(answer, dict[_Rank, _Source], strict=False, str_keys=True)


def _numbered(answer: list[Any]) -> Mapping[int, _Source]:
    found: dict[int, _Source] = {}
    sources = msgspec.convert(
        answer, Annotated[list[_Source], msgspec.Meta(max_length=MOST_RANKS)], strict=False
    )
    for place, source in enumerate(sources):
        rank = place if source.named_rank is None else source.named_rank
        if rank in found:
            raise ValueError(f"rank {rank} is there twice")
        found[rank] = source
    return found


def _address(rank: int, source: _Source, host: str) -> SourceAddress:
    named = _host(source.endpoint)
    bound = (
        _is_wildcard(source.endpoint)
        or named is None
        or (named == host.strip("[]") and not _is_loopback(named))
    )
    replay = source.replay_endpoint
    return SourceAddress(
        rank=rank,
        endpoint=_at_host(source.endpoint, host) if bound else source.endpoint,
        replay_endpoint=_at_host(replay, host) if replay else None,
        topic=source.topic or "",
        bind=not bound,
    )


def _host(endpoint: str) -> str | None:
    return urllib.parse.urlsplit(endpoint).hostname if endpoint.startswith("tcp://") else None


def _is_wildcard(endpoint: str) -> bool:
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if not endpoint.startswith("tcp://"):
        return False
    try:
        return host == "*" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _at_host(endpoint: str, host: str) -> str:
    """The endpoint as seen from here: its wildcard replaced by the instance's host."""
    if not _is_wildcard(endpoint):
        return endpoint
    return f"tcp://{host}:{endpoint.rpartition(':')[2]}"
