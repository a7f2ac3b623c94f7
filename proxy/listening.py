"""Each path is served on one socket: with an admin port, what operators ask is not there for clients to find."""

import ssl

from aiohttp import web

from proxy.config import Config
from proxy.connections import Runner
from proxy.errors import ConfigError
from proxy.tls import server_context

BACKLOG = 4096
"""Connections that may wait to be accepted, as far as the system lets them (Linux: net.core.somaxconn): with aiohttp's 128
a burst of some hundred clients has some of them reset."""


class ServiceRunner(Runner):
    """Runs kvproxy: the application for clients, and the one for operators where it has a socket of its own."""

    __slots__ = ("_config", "_tls", "admin")

    def __init__(self, app: web.Application, admin: web.Application | None, config: Config) -> None:
        """Raises ConfigError if the certificate cannot be used."""
        super().__init__(app)
        self._config = config
        self.admin = Runner(admin) if admin is not None else None
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
        """Open the sockets, and return the URL of each: the clients', then the operators'. Raises ConfigError."""
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
        try:
            await web.TCPSite(runner, host, port, ssl_context=self._tls, backlog=BACKLOG).start()
        except OSError as error:
            raise ConfigError(
                f"--{prefix}host {host} --{prefix}port {port}: cannot listen there ({error.strerror})"
            ) from None
        at = f"[{host}]" if ":" in host else host
        return f"{'https' if self._tls else 'http'}://{at}:{runner.addresses[0][1]}"
