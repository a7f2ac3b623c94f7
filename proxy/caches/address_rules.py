"""An engine may name addresses of its own host; any other needs an operator's permission.

An engine that could name any address would have kvproxy connect to machines that the engine itself cannot
reach, or listen where no engine should be heard. Pure: no name is resolved and no socket opened here.
"""

import ipaddress
import re

import msgspec

from proxy.config import AllowedInstances, Config
from proxy.logs import quoted

UNPROVEN_RANKS = 8
"""The number of ranks that an engine may have without proof; more are believed only if its metrics list as
many, or list none."""

_ENDPOINT = re.compile(r"tcp://(\*|\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_FIRST_PORT = 1024
"""The ports below belong to this machine's own services."""


class NotAllowedError(ValueError):
    """An engine named an address that it may not name."""


class Endpoint(msgspec.Struct, frozen=True):
    """A TCP address as an engine names it."""

    host: str
    """Without brackets, in lower case; `*` for all interfaces."""
    port: int

    def at(self, host: str) -> str:
        """The address of the same port at another host, as ZeroMQ writes it."""
        bare = host.strip("[]")
        return f"tcp://[{bare}]:{self.port}" if ":" in bare else f"tcp://{bare}:{self.port}"

    def __str__(self) -> str:
        return self.at(self.host)

    @property
    def is_wildcard(self) -> bool:
        """Whether the endpoint means all interfaces of the engine's machine."""
        return self.host == "*" or _is_any(self.host)


def read_endpoint(text: str) -> Endpoint:
    """The endpoint in an engine's text. Raises NotAllowedError if it may not be named, ValueError if it is no
    endpoint.
    """
    if text.startswith(("ipc://", "inproc://")):
        raise NotAllowedError(
            "it publishes at a socket of its own machine (ipc), which only ?events= can name"
        )
    if (match := _ENDPOINT.fullmatch(text)) is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f"{quoted(text)} is not tcp://HOST:PORT")
    return Endpoint(match[1].strip("[]").lower(), int(match[2]))


class AddressRules(msgspec.Struct, frozen=True):
    """Where kvproxy connects and listens because an engine says so."""

    allowed: AllowedInstances = AllowedInstances(())
    """What may be connected to besides the engine's own host."""
    bind: str | None = "127.0.0.1"
    """The address of the interface to listen on for publishers that connect; None: none."""

    @classmethod
    def of(cls, config: Config) -> "AddressRules":
        """The rules that a configuration sets."""
        return cls(AllowedInstances(config.security.allow_instances), events_bind(config))

    def connected(self, endpoint: Endpoint, host: str) -> str:
        """The address to connect to for an endpoint of an engine at `host`. Raises NotAllowedError."""
        own = host.strip("[]").lower()
        if endpoint.is_wildcard:
            return endpoint.at(own)
        same = endpoint.host == own or (is_loopback(endpoint.host) and is_loopback(own))
        if not same and not self.allowed.allows(endpoint.host):
            raise NotAllowedError(f"{endpoint} is another host, and not among --allow-instances")
        return str(endpoint)

    def bound(self, endpoint: Endpoint) -> str:
        """The address to bind for a publisher that connects to `endpoint`. Raises NotAllowedError."""
        if self.bind is None:
            raise NotAllowedError(
                f"it connects to {endpoint}, and kvproxy listens nowhere: give --events-bind"
            )
        if endpoint.port < _FIRST_PORT:
            raise NotAllowedError(
                f"it connects to {endpoint}, and kvproxy listens on no port below {_FIRST_PORT}"
            )
        if _address(endpoint.host) is None:
            return endpoint.at(
                "127.0.0.1" if _is_any(self.bind) and is_loopback(endpoint.host) else self.bind
            )
        if endpoint.host != self.bind and not _is_any(self.bind):
            raise NotAllowedError(
                f"it connects to {endpoint}, and kvproxy listens for events on {self.bind} alone "
                "(--events-bind)"
            )
        return str(endpoint)


def events_bind(config: Config) -> str | None:
    """The address to listen on for events: `--events-bind`, or else `--host` if that is an address; None:
    none.
    """
    wanted = config.security.events_bind or config.host
    if wanted == "localhost":
        return "127.0.0.1"
    return wanted if _address(wanted) is not None else None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _is_any(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
