"""A request counts as local only if no reverse proxy on this machine passes it on, and no page of another
site makes a browser on this machine send it.

All of them connect from 127.0.0.1. But a proxy adds a header that says for whom it asks, or keeps the `Host`
it was asked by; a browser says which page asks, and a page whose name was made to resolve to this machine
(DNS rebinding) still has that name in `Host`.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

_SAID_BY_PROXIES = frozenset(
    {
        "cf-connecting-ip",
        "forwarded",
        "true-client-ip",
        "via",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-envoy-external-address",
        "x-real-ip",
    }
)
_SAID_BY_PROXIES_TOO = "x-forwarded-"

_SAME_SITE = frozenset({"same-origin", "none"})
"""The values of `Sec-Fetch-Site` for a page of kvproxy itself, and for an address that somebody typed
(https://www.w3.org/TR/fetch-metadata/)."""

_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


def why_not_local(
    peer: str | None,
    headers: Iterable[tuple[str, str]],
    *,
    scheme: str,
    listens_on: Collection[str],
) -> str | None:
    """Why a request does not count as local, in words; None if it does.

    `peer`: the address that the connection comes from; `scheme`: `http` or `https`; `listens_on`: the hosts
    that kvproxy is configured to listen on.
    """
    if peer is None or not _is_loopback(peer):
        return "this connection comes from elsewhere"
    given: dict[str, list[str]] = {}
    for name, value in headers:
        given.setdefault(name.lower(), []).append(value)
    for name in given:
        if name in _SAID_BY_PROXIES or name.startswith(_SAID_BY_PROXIES_TOO):
            return "this came through a proxy"
    hosts, origins = given.get("host", []), given.get("origin", [])
    asked = _origin(scheme, hosts[0]) if len(hosts) == 1 else None
    if asked is None or not (
        asked.host == "localhost" or _is_loopback(asked.host) or asked.host in listens_on
    ):
        return "Host is no name of loopback, nor the one of --host"
    if any(site.lower() not in _SAME_SITE for site in given.get("sec-fetch-site", ())):
        return "a page of another site asks"
    if origins and any(_read_origin(origin) != asked for origin in origins):
        return "a page of another origin asks"
    return None


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # one socket for both families shows IPv4 clients so
    return address.is_loopback


def _origin(scheme: str, authority: str) -> _Origin | None:
    found = _AUTHORITY.fullmatch(authority)
    if found is None or scheme not in _PORTS:
        return None
    return _Origin(scheme, found["host"].strip("[]").lower(), int(found["port"] or _PORTS[scheme]))


def _read_origin(text: str) -> _Origin | None:
    scheme, _, authority = text.partition("://")
    return _origin(scheme.lower(), authority)
