"""Who may ask kvproxy for what, and over which sockets."""

import ipaddress
import pathlib
from collections.abc import Sequence

import msgspec

from proxy.config.allowed import AllowedInstances
from proxy.errors import ConfigError


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """Keys, certificates and the addresses that may become instances."""

    api_key_file: pathlib.Path | None = None
    """The clients' keys, one `NAME KEY` a line; None: everybody may ask."""
    salt_by_client: bool = False
    """Whether engines get a `cache_salt` that differs by client."""
    salt_file: pathlib.Path | None = None
    """The secret that salts are made with; None: that of the state directory, else one for this process."""
    engine_api_key_file: pathlib.Path | None = None
    """Where the engines' key was read from."""
    admin_host: str | None = None
    admin_port: int | None = None
    """Where status, metrics, explain and instances are served instead of the main socket; None: there."""
    tls_cert: pathlib.Path | None = None
    tls_key: pathlib.Path | None = None
    engine_ca: pathlib.Path | None = None
    """What engines reached by https:// must be certified by; None: the system's authorities."""
    allow_instances: Sequence[str] = ()
    """The networks (CIDR) and host patterns that /instances/add may name; empty: any. An engine may tell of event
    sources there, and else on its own host alone."""
    events_bind: str | None = None
    """Where kvproxy listens for engines whose publishers connect: an address, or `off`; None: the address of --host."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key are given together or not at all")
        if self.salt_by_client and self.api_key_file is None:
            raise ConfigError("--salt-by-client needs --api-key-file: clients are told apart by their keys")
        if self.salt_file is not None and not self.salt_by_client:
            raise ConfigError("--salt-file needs --salt-by-client")
        if self.admin_host is not None and self.admin_port is None:
            raise ConfigError("--admin-host needs --admin-port")
        if self.admin_port is not None and not 0 <= self.admin_port <= 65535:
            raise ConfigError(f"--admin-port {self.admin_port} is not a port: give 0 to 65535")
        AllowedInstances(self.allow_instances)
        if self.events_bind not in {None, "off"}:
            try:
                ipaddress.ip_address(str(self.events_bind))
            except ValueError:
                raise ConfigError(
                    f"--events-bind {self.events_bind!r} is not an address of this machine: give for example 10.0.0.5,"
                    " 0.0.0.0 for all interfaces, or off"
                ) from None
