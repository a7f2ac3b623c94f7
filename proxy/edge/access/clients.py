"""Clients are told apart by what the operator trusts: a configured header, else the name of their API key.

Requests with neither are one client in the queue; memory for their bodies is shared out by address.
"""

import functools
import hashlib
import ipaddress

from aiohttp import web

from proxy.edge.visit import Visit
from proxy.fair_queue import ANONYMOUS

MAX_CLIENT_CHARS = 128
"""A longer name is replaced by its digest, so that names take little memory."""


def client_of(request: web.Request, visit: Visit, header: str | None) -> str:
    """The client that a request belongs to, for fairness alone: access is not decided by it. `header`: the
    configured header's name.
    """
    name = (request.headers.get(header) if header is not None else None) or visit.client or ""
    if len(name) > MAX_CLIENT_CHARS:
        return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return name or ANONYMOUS


SITE_BITS = 64
"""The part of an IPv6 address that stands for one holder: a provider gives each customer a network of this
size at least, with all addresses in it (RFC 6177)."""


def holder_of(request: web.Request, visit: Visit, header: str | None) -> str:
    """Whose share of the memory for bodies a request takes: its client's, or else that of its network."""
    client = client_of(request, visit, header)
    return client if client != ANONYMOUS else _stranger_from(request.remote)


@functools.lru_cache(maxsize=1024)  # parsing an address takes longer than all else done for it
def _stranger_from(peer: str | None) -> str:
    return f"from {network_of(peer)}"


def network_of(peer: str | None) -> str:
    """The IPv4 address, or the IPv6 network, that `peer` belongs to, as text."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return "nowhere"  # the client has left already
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:  # one socket for both families shows IPv4 clients so
        return str(address.ipv4_mapped)
    site = ipaddress.IPv6Network((int(address), SITE_BITS), strict=False)
    return str(site)
