"""Handlers find what they need in the application, under the keys of this file."""

from aiohttp import web

from proxy.edge.access.client_salts import ClientSalts
from proxy.request.dialects import Dialect
from proxy.request.passing import Whole
from proxy.service import Service

SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
"""Everything below the edge."""

SALTS: web.AppKey[ClientSalts] = web.AppKey("salts", ClientSalts)
"""Makes the salts of clients; missing without --salt-by-client."""

SPOKEN: web.AppKey[tuple[Dialect, ...]] = web.AppKey("dialects", tuple[Dialect, ...])
"""The generating routes that are served."""

WHOLE: web.AppKey[tuple[Whole, ...]] = web.AppKey("whole", tuple[Whole, ...])
"""The routes that one engine serves whole."""
