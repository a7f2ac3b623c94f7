"""Each path is served on one socket: with an admin port, what operators ask is not there for clients to
find.
"""

import ipaddress
import logging
import os
import socket
import ssl

from aiohttp import web

from proxy.config import Config
from proxy.edge.app_keys import SERVICE
from proxy.edge.patience import PATIENCE, Patience
from proxy.edge.sockets.connections import Runner
from proxy.edge.sockets.doors import ClientDoor, OperatorDoor
from proxy.errors import ConfigError
from proxy.tls import server_context

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that may wait to be accepted, as far as the system lets them (Linux: net.core.somaxconn): with
aiohttp's 128 a burst of some hundred clients has some of them reset."""


class ServiceRunner(Runner):
    """Runs kvproxy: the application for clients, and the one for operators where it has a socket of its
    own.
    """

    __slots__ = ("_config", "_tls", "admin")

    def __init__(
        self,
        app: web.Application,
        admin: web.Application | None,
        config: Config,
        patience: Patience = PATIENCE,
    ) -> None:
        """Raises ConfigError if the certificate cannot be used."""
        descriptors = app[SERVICE].descriptors
        super().__init__(app, ClientDoor(descriptors), patience)
        self._config = config
        self.admin = Runner(admin, OperatorDoor(descriptors), patience) if admin is not None else None
        cert, key = config.security.tls_cert, config.security.tls_key
        self._tls: ssl.SSLContext | None = server_context(cert, key) if cert and key else None

    async def setup(self) -> None:
        """Start both applications, the one that has the engines first."""
        await super().setup()
        if self.admin is not None:
            await self.admin.setup()

    async def cleanup(self) -> None:
        """End both, the one that has the engines last."""
        if self.admin is not None:
            await self.admin.cleanup()
        await super().cleanup()

    async def listen(self) -> list[str]:
        """Open the sockets, and return the URL of each: the clients', then the operators'. Raises
        ConfigError.
        """
        config, security = self._config, self._config.security
        urls = [await self._open(self, "", config.host, config.port)]
        if self.admin is not None:
            urls.append(
                await self._open(
                    self.admin, "admin-", security.admin_host or config.host, security.admin_port or 0
                )
            )
        return urls

    async def _open(self, runner: Runner, prefix: str, host: str, port: int) -> str:
        flag = f"--{prefix}host {host}"
        host = host.removeprefix("[").removesuffix("]")
        if _everywhere(host) and not socket.has_dualstack_ipv6():
            log.warning("%s: this machine has no IPv6, so IPv4 alone is served", flag)
            host = "0.0.0.0"  # noqa: S104  # all addresses were asked for
        try:
            await self._site(runner, host, port).start()
        except OSError as error:
            number = error.errno or 0  # a name that is not found has one of its own, below 0
            why = (
                os.strerror(number) if number > 0 else error.strerror
            )  # the loop's words hold the address once more
            raise ConfigError(f"{flag} --{prefix}port {port}: cannot listen there ({why})") from None
        at = f"[{host}]" if ":" in host else host
        return f"{'https' if self._tls else 'http'}://{at}:{runner.addresses[0][1]}"

    def _site(self, runner: Runner, host: str, port: int) -> web.BaseSite:
        """Where to listen. An event loop's own sockets for `::` take IPv6 alone, so that one is made here."""
        if not _everywhere(host):
            return web.TCPSite(runner, host, port, ssl_context=self._tls, backlog=BACKLOG)
        both = socket.create_server(
            (host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
        return web.SockSite(runner, both, ssl_context=self._tls, backlog=BACKLOG)


def _everywhere(host: str) -> bool:
    """Whether a host is all addresses of IPv6, however it is spelled: those of IPv4 are meant as well."""
    try:
        return ipaddress.ip_address(host) == ipaddress.IPv6Address("::")
    except ValueError:
        return False
