"""An error on the path of a generating route, or on a path below it that is none of those
served whole, is answered in the route's own words.
"""

from typing import Any

from aiohttp import web

from proxy.edge.app_keys import SPOKEN, WHOLE
from proxy.errors import RequestError, envelope
from proxy.request.dialects import Dialect


def dialect_at(request: web.Request) -> Dialect | None:
    """The dialect in whose words errors on this path are; None for the one envelope."""
    path = f"{request.path.rstrip('/')}/"
    if any(path == f"{route.path}/" for route in request.app.get(WHOLE, ())):
        return None
    spoken = [dialect for dialect in request.app.get(SPOKEN, ()) if path.startswith(f"{dialect.path}/")]
    return max(spoken, key=lambda dialect: len(dialect.path), default=None)


def worded(error: RequestError, request: web.Request) -> dict[str, Any]:
    """The body of the answer to a request that ends in `error`."""
    dialect = dialect_at(request)
    if dialect is None:
        return envelope(str(error), error.kind, error.status, error.param)
    return dialect.error(error)
