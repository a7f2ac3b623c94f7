"""Clients are told apart by what the operator trusts: a configured header, else the name of their API key.

Where neither tells, memory is shared by address.
"""

import functools
import hashlib
import ipaddress

from aiohttp import web

from proxy.edge.access.authentication import CLIENT_KEY
from proxy.fair_queue import ANONYMOUS

MAX_CLIENT_CHARS = 128
"""A longer name is kept as its digest, so that names take no memory worth speaking of."""


def client_of(request: web.Request, header: str | None) -> str:
    """Whose request it is, for fairness alone: nothing is allowed or refused by it."""
    name = (request.headers.get(header) if header is not None else None) or request.get(CLIENT_KEY, "")
    if len(name) > MAX_CLIENT_CHARS:
        return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return name or ANONYMOUS


SITE_BITS = 64
"""Of an IPv6 address: what a provider gives one customer at least, who has all addresses in it (RFC 6177)."""


def holder_of(request: web.Request, header: str | None) -> str:
    """Whose share of the memory for bodies a request's body takes: its client's, else that of where it comes
    from.
    """
    client = client_of(request, header)
    return client if client != ANONYMOUS else f"from {network_of(request.remote)}"


@functools.lru_cache(maxsize=1024)  # reading one takes longer than all else that is done with it
def network_of(peer: str | None) -> str:
    """An address, or the network of one in IPv6, as text."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return "nowhere"  # it left already
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:  # one socket for both families shows IPv4 clients so
        return str(address.ipv4_mapped)
    site = ipaddress.IPv6Network((int(address), SITE_BITS), strict=False)
    return str(site)
