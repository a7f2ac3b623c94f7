"""Clients are told apart by what the operator trusts: a configured header, else the name of their API key."""

import hashlib

from aiohttp import web

from proxy.authentication import CLIENT_KEY
from proxy.fair_queue import ANONYMOUS

MAX_CLIENT_CHARS = 128
"""A longer name is kept as its digest, so that names take no memory worth speaking of."""


def client_of(request: web.Request, header: str | None) -> str:
    """Whose request it is, for fairness alone: nothing is allowed or refused by it."""
    name = (request.headers.get(header) if header is not None else None) or request.get(CLIENT_KEY, "")
    if len(name) > MAX_CLIENT_CHARS:
        return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return name or ANONYMOUS
