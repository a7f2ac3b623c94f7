"""The addresses at which an engine says it publishes become addresses to connect to, or to bind; what cannot
be read raises.
"""

from typing import Any

from kvevents.subscriber import SourceAddress
from proxy.caches.address_rules import AddressRules, NotAllowedError, is_loopback, read_endpoint
from proxy.config import InstanceSpec
from proxy.upstream.engine_api.event_sources import PATH, ToldSource, by_rank


def named_sources(spec: InstanceSpec) -> list[SourceAddress]:
    """The sources that are part of an instance's name (`?events=`)."""
    return [
        SourceAddress(
            rank=given.rank,
            endpoint=given.endpoint,
            replay_endpoint=given.replay_endpoint,
            topic=given.topic,
            bind=_is_wildcard(given.endpoint),
        )
        for given in spec.event_sources
    ]


def _is_wildcard(endpoint: str) -> bool:
    try:
        return read_endpoint(endpoint).is_wildcard
    except ValueError:
        return False  # a name, or a socket of this machine


def read_sources(answer: Any, host: str, rules: AddressRules) -> list[SourceAddress]:
    """The sources in an engine's decoded answer to `GET /kv_event_sources`.

    An endpoint with a wildcard is bound by the engine, so it is reached at the instance's own host. To any
    other endpoint the engine connects, and the subscriber binds it; except if it names the very host the
    instance is reached at, not loopback: an engine that was asked to find a free port of its own answers so.
    Raises NotAllowedError for an address that `rules` forbid, ValueError for what cannot be read
    (`event_sources.by_rank`).
    """
    ranks = by_rank(answer)
    try:
        return [_address(rank, source, host, rules) for rank, source in ranks.items()]
    except NotAllowedError:
        raise
    except ValueError as error:
        raise ValueError(f"not an answer of {PATH}: {error}") from None


def _address(rank: int, source: ToldSource, host: str, rules: AddressRules) -> SourceAddress:
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
