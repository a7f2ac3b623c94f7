"""What handlers find in the application."""

from collections.abc import Sequence

from aiohttp import web

from proxy.edge.access.client_salts import ClientSalts
from proxy.request.dialects import Dialect
from proxy.service import Service

SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
"""All that is below the edge."""

SALTS: web.AppKey[ClientSalts] = web.AppKey("salts", ClientSalts)
"""Set if engines get salts that differ by client."""

SPOKEN: web.AppKey[Sequence[Dialect]] = web.AppKey("dialects", Sequence[Dialect])
"""The generating routes that are served."""
