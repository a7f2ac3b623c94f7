"""Which engines may be added while kvproxy runs: an address is judged by its network, a name by its spelling.

Names are never resolved here: a name can mean another address by the time of the connection.
"""

import fnmatch
import ipaddress
import re
import socket
import urllib.parse
from collections.abc import Iterable

from proxy.config.instances import InstanceSpec
from proxy.errors import ConfigError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAMES = re.compile(r"(?![0-9.]+$)[A-Za-z0-9._*?-]+")
"""A text of digits and dots only is a mistyped address, no name."""


class AllowedInstances:
    """The patterns of `--allow-instances`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises ConfigError, which names the flag, for a pattern that is no network, address or host
        pattern.
        """
        self._networks: list[_Network] = []
        self._globs: list[str] = []
        for pattern in patterns:
            text = pattern.removeprefix("[").removesuffix("]")
            try:
                self._networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                if "/" in pattern or ":" in pattern or not _NAMES.fullmatch(pattern) or _address(pattern):
                    raise ConfigError(
                        f"--allow-instances {pattern!r} is neither a network nor a host pattern ({error});"
                        " write for example 10.1.0.0/16 or gpu*.cluster.example"
                    ) from None
                self._globs.append(pattern.lower())

    def allows(self, host: str) -> bool:
        """Whether `host`, an address (IPv6 with or without brackets) or a name, is covered by a pattern."""
        address = _address(host)
        if address is not None:
            return any(address in network for network in self._networks)
        return any(fnmatch.fnmatchcase(host.lower(), glob) for glob in self._globs)

    def why_not(self, spec: InstanceSpec) -> str | None:
        """Why an instance is not allowed, in words; None if it is.

        Its event sources are connections too, so the same patterns hold for their hosts. An instance that is
        added cannot make kvproxy bind a socket, nor open one of this machine's own.
        """
        if not self.allows(spec.host):
            return f"{spec.address} is not among --allow-instances"
        for source in spec.event_sources:
            for endpoint in filter(None, (source.endpoint, source.replay_endpoint)):
                parts = urllib.parse.urlsplit(endpoint)
                host = parts.netloc.rpartition(":")[0]
                if parts.scheme != "tcp" or not self.allows(host):
                    return f"{endpoint} is not among --allow-instances"
        return None


def _address(host: str) -> _Address | None:
    """A host as an address, in any spelling that a resolver takes for one; None for a name."""
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        try:  # 127.1, 2130706433, 0x7f.1: addresses to inet_aton(3), and so to getaddrinfo(3)
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
