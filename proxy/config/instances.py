"""One engine as it is named: `HOST:PORT`, its role, and its event sources if they are given."""

import ipaddress
import re
import urllib.parse

import msgspec

from proxy.errors import ConfigError
from proxy.phases import Role


class EventSource(msgspec.Struct, frozen=True):
    """Where one rank of an instance publishes its KV events, as the user wrote it."""

    rank: int
    endpoint: str
    """kvproxy connects to it; if it has a wildcard, such as `tcp://*:5557`, kvproxy binds it for an engine
    whose publisher connects."""
    replay_endpoint: str | None = None
    topic: str = ""


class InstanceSpec(msgspec.Struct, frozen=True):
    """One engine as it is configured: where it listens, what it does, and its event sources if they are
    given.
    """

    address: str
    """`host:port`, the instance's name everywhere."""
    role: Role
    event_sources: tuple[EventSource, ...] = ()
    """If empty, the engine is asked (`GET /kv_event_sources`)."""
    scheme: str = "http"
    """`http` or `https`; not part of the name."""

    @property
    def host(self) -> str:
        """The host alone; an IPv6 address keeps its brackets."""
        return self.address.rpartition(":")[0]


_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|_?[A-Za-z0-9._-]+")


def parse_instance(text: str, role: Role, *, origin: str = "") -> InstanceSpec:
    """An `InstanceSpec` from `[http[s]://]HOST:PORT[?events=tcp://H:P,...&replay=tcp://H:P,...&topic=T]`.

    Several comma-separated endpoints are the ranks 0, 1, ... in order. `origin` names the flag or field in
    the error. Raises ConfigError.
    """
    origin = origin or f"--{role}"
    scheme = "https" if text.startswith("https://") else "http"
    bare = text.removeprefix(f"{scheme}://")
    if "://" in bare.partition("?")[0]:
        raise ConfigError(
            f"{origin} {text!r}: only http:// and https:// engines can be reached;"
            " write HOST:PORT or https://HOST:PORT"
        )
    address, _, query = bare.partition("?")
    address = _host_and_port(address.removesuffix("/"), text, origin)
    return InstanceSpec(address, role, _event_sources(query, text, origin), scheme)


def as_text(spec: InstanceSpec) -> str:
    """The text from which `parse_instance` makes this instance."""
    sources = spec.event_sources
    query = {"events": ",".join(source.endpoint for source in sources)} if sources else {}
    replays = [source.replay_endpoint for source in sources if source.replay_endpoint is not None]
    if replays:
        query["replay"] = ",".join(replays)
    if sources and sources[0].topic:
        query["topic"] = sources[0].topic
    scheme = "https://" if spec.scheme == "https" else ""
    return scheme + spec.address + ("?" + urllib.parse.urlencode(query, safe="/:*,[]") if query else "")


def _host_and_port(address: str, text: str, origin: str) -> str:
    host, colon, port = address.rpartition(":")
    remedy = f"{origin} {text!r}: write HOST:PORT, for example 127.0.0.1:8100 or [::1]:8100"
    if not colon or not host:
        raise ConfigError(f"{remedy} (no port)")
    if not (port.isascii() and port.isdigit() and len(port) <= 6 and 1 <= int(port) <= 65535):
        raise ConfigError(f"{remedy} ({port!r} is not a port)")
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ConfigError(f"{remedy} ({host} is not an IPv6 address)") from None
    elif not _HOST.fullmatch(host) or len(host) > 253:
        raise ConfigError(f"{remedy} ({host!r} is not a host name or address)")
    return f"{host.lower()}:{int(port)}"


def _event_sources(query: str, text: str, origin: str) -> tuple[EventSource, ...]:
    if not query:
        return ()
    try:
        given = urllib.parse.parse_qs(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise ConfigError(f"{origin} {text!r}: after ? write events=tcp://HOST:PORT&replay=...") from None
    if unknown := sorted(set(given) - {"events", "replay", "topic"}):
        raise ConfigError(f"{origin} {text!r}: unknown {unknown[0]!r}; known are events, replay and topic")
    lists = {name: ",".join(values).split(",") for name, values in given.items() if name != "topic"}
    for name, endpoints in lists.items():
        for endpoint in endpoints:
            if not re.fullmatch(r"(tcp://(\[[0-9A-Fa-f:.]+\]|[^:/\s\[\]]+):\d{1,5})|(ipc://\S+)", endpoint):
                raise ConfigError(f"{origin} {text!r}: {name} must be tcp://HOST:PORT, got {endpoint!r}")
    events, replays = lists.get("events", []), lists.get("replay", [])
    if not events:
        raise ConfigError(f"{origin} {text!r}: replay and topic need events=tcp://HOST:PORT")
    if replays and len(replays) != len(events):
        raise ConfigError(
            f"{origin} {text!r}: {len(events)} events endpoints but {len(replays)} replay endpoints"
        )
    topic = given.get("topic", [""])[-1]
    return tuple(
        EventSource(rank, endpoint, replays[rank] if replays else None, topic)
        for rank, endpoint in enumerate(events)
    )
