"""A `Visit` holds what the edge knows of one request of HTTP, from its head to its end."""

import re
import time

from aiohttp import web

from proxy.admission import BodyLease
from proxy.edge.ids import new_id
from proxy.edge.patience import PATIENCE, Patience
from proxy.headers import REQUEST_ID

_REQUEST_ID = re.compile(r"[!-~]{1,256}")
"""Ids that a client may choose: without spaces, so that an id in the access log is one word."""


class Visit:
    """One request of HTTP while it is answered."""

    __slots__ = (
        "body",
        "client",
        "is_named_here",
        "is_spare",
        "lease",
        "notes",
        "patience",
        "request_id",
        "started_at",
    )

    def __init__(
        self, given_id: str | None, patience: Patience = PATIENCE, *, is_spare: bool = False
    ) -> None:
        """`given_id`: the id that its client sent."""
        self.is_named_here = given_id is None or _REQUEST_ID.fullmatch(given_id) is None
        """Whether kvproxy made its id, since its client sent none that can be used."""
        self.request_id = new_id() if given_id is None or self.is_named_here else given_id
        self.started_at = time.monotonic()
        self.patience = patience
        """How long clients of the socket that it came by may take."""
        self.is_spare = is_spare
        """Whether it came by a spare connection, one that is reserved for probes and operators."""
        self.notes: dict[str, str] = {}
        """Names and values that handlers add to the line of the access log."""
        self.client: str | None = None
        """The name of the key that it came with; None if no key is asked for."""
        self.lease: BodyLease | None = None
        """The memory that its body takes, from the moment it is read until the request ends."""
        self.body: bytearray | None = None
        """Its body, as far as it has arrived, if it arrives in pieces; else None."""


VISIT: web.RequestKey[Visit] = web.RequestKey("visit", Visit)


def visit_of(request: web.BaseRequest) -> Visit:
    """The visit of a request; a new one if the request came by no socket of `edge/sockets`, as in tests."""
    try:
        return request[VISIT]
    except KeyError:
        visit = request[VISIT] = Visit(request.headers.get(REQUEST_ID))
        return visit
