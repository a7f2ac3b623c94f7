"""Where an engine says it publishes becomes where we connect, or bind; what cannot be read is an error, not silence."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from kvevents.subscriber import SourceAddress
from proxy.caches.told import MOST_TOLD_RANKS, NotAllowedError, ToldRules, is_loopback, read_endpoint
from proxy.config import InstanceSpec
from proxy.fleet.instances import MOST_RANKS


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


def _is_wildcard(endpoint: str) -> bool:
    try:
        return read_endpoint(endpoint).is_wildcard
    except ValueError:
        return False  # a name, or a socket of this machine


_Rank = Annotated[int, msgspec.Meta(ge=0, lt=MOST_RANKS)]
_Text = Annotated[str, msgspec.Meta(max_length=300)]


class _Source(msgspec.Struct):
    endpoint: _Text
    replay_endpoint: _Text | None = None
    topic: _Text | None = None
    data_parallel_rank: _Rank | None = None
    dp_rank: _Rank | None = None
    rank: _Rank | None = None

    @property
    def named_rank(self) -> int | None:
        return next((n for n in (self.data_parallel_rank, self.dp_rank, self.rank) if n is not None), None)


def read_sources(answer: Any, host: str, rules: ToldRules) -> list[SourceAddress]:
    """The sources in an engine's answer to `GET /kv_event_sources`.

    Either an object, rank as text -> endpoints (vLLM 0.32), or an array of them that name their ranks themselves; those
    that do not have their place in it as rank.

    A wildcard endpoint is bound by the engine, so it is reached at the instance's own host. To any other the
    engine connects, and the subscriber binds - unless it names the very host the instance is reached at, not
    loopback: that is what an engine tells that was asked to find a free port of its own. Raises NotAllowedError if it
    names what `rules` do not let it name, ValueError if it is not such an answer, names more than MOST_TOLD_RANKS
    ranks, one from MOST_RANKS on, or one twice.
    """
    try:
        told = _numbered(answer) if isinstance(answer, list) else _by_rank(answer)
        return [_address(rank, source, host, rules) for rank, source in sorted(told.items())]
    except NotAllowedError:
        raise
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"not an answer of /kv_event_sources: {error}") from None


def _by_rank(answer: Any) -> Mapping[int, _Source]:
    found: dict[int, _Source] = msgspec.convert(
        answer,
        Annotated[dict[_Rank, _Source], msgspec.Meta(max_length=MOST_TOLD_RANKS)],
        strict=False,
        str_keys=True,
    )
    return found


def _numbered(answer: list[Any]) -> Mapping[int, _Source]:
    found: dict[int, _Source] = {}
    sources = msgspec.convert(
        answer, Annotated[list[_Source], msgspec.Meta(max_length=MOST_TOLD_RANKS)], strict=False
    )
    for place, source in enumerate(sources):
        rank = place if source.named_rank is None else source.named_rank
        if rank in found:
            raise ValueError(f"rank {rank} is there twice")
        found[rank] = source
    return found


def _address(rank: int, source: _Source, host: str, rules: ToldRules) -> SourceAddress:
    endpoint = read_endpoint(source.endpoint)
    own = host.strip("[]").lower()
    bound_there = endpoint.is_wildcard or (endpoint.host == own and not is_loopback(own))
    replay = read_endpoint(source.replay_endpoint) if source.replay_endpoint else None
    return SourceAddress(
        rank=rank,
        endpoint=rules.connected(endpoint, host) if bound_there else rules.bound(endpoint),
        replay_endpoint=rules.connected(replay, host) if replay is not None else None,
        topic=source.topic or "",
        bind=not bound_there,
    )
