"""Operators' paths are served on one socket alone: with an admin port, clients' socket does not have them."""

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
"""How many connections may wait to be accepted, if the system allows it (Linux: net.core.somaxconn). With
aiohttp's 128 some connections of a burst of some hundred clients are reset."""


class ServiceRunner(Runner):
    """Runs the application for clients, and the one for operators if there is an admin port."""

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
        """Start both applications; that for clients, which runs the service, first."""
        await super().setup()
        if self.admin is not None:
            await self.admin.setup()

    async def cleanup(self) -> None:
        """End both applications; that for clients, which runs the service, last."""
        if self.admin is not None:
            await self.admin.cleanup()
        await super().cleanup()

    async def listen(self) -> list[str]:
        """Open the sockets and return their URLs: that for clients, then that for operators if there is one.

        Raises ConfigError if a socket cannot be opened.
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
            number = error.errno or 0  # below 0 for a name that is not found
            why = os.strerror(number) if number > 0 else error.strerror  # the loop's own repeats the address
            raise ConfigError(f"{flag} --{prefix}port {port}: cannot listen there ({why})") from None
        at = f"[{host}]" if ":" in host else host
        return f"{'https' if self._tls else 'http'}://{at}:{runner.addresses[0][1]}"

    def _site(self, runner: Runner, host: str, port: int) -> web.BaseSite:
        """The socket to listen on. An event loop's own socket for `::` takes IPv6 alone, so that one is made
        here.
        """
        if not _everywhere(host):
            return web.TCPSite(runner, host, port, ssl_context=self._tls, backlog=BACKLOG)
        both = socket.create_server(
            (host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
        return web.SockSite(runner, both, ssl_context=self._tls, backlog=BACKLOG)


def _everywhere(host: str) -> bool:
    """Whether a host is `::`, however it is spelled: all addresses, those of IPv4 included."""
    try:
        return ipaddress.ip_address(host) == ipaddress.IPv6Address("::")
    except ValueError:
        return False
