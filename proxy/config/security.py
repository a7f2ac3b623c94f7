"""Who may ask kvproxy for what, and over which sockets."""

import ipaddress
import pathlib
from collections.abc import Sequence
from typing import Annotated

from proxy.config.allowed import AllowedInstances
from proxy.config.settings import FILE, PORT, Section, Setting
from proxy.errors import ConfigError


def _check_patterns(_flag: str, patterns: Sequence[str]) -> None:
    AllowedInstances(patterns)


def _check_address(flag: str, address: str) -> None:
    if address == "off":
        return
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ConfigError(
            f"{flag} {address!r} is not an address of this machine: give for example 10.0.0.5,"
            " 0.0.0.0 for all interfaces, or off"
        ) from None


class Security(Section, frozen=True, kw_only=True):
    """Keys, certificates and the addresses that may become instances."""

    api_key_file: Annotated[
        pathlib.Path | None,
        Setting(
            "--api-key-file",
            FILE,
            "clients' keys, one NAME KEY or NAME@GROUP KEY a line, wanted for all of /v1; without it"
            " everybody may ask",
        ),
    ] = None
    salt_by_client: Annotated[
        bool,
        Setting(
            "--salt-by-client",
            "",
            "what one key's prompts leave in caches is found for that key, or its GROUP, alone: usage and"
            " timing tell nobody of others' prompts, and nothing is shared",
            more="Engines get a `cache_salt` that differs by client. [What that costs](security.md#tenants).",
        ),
    ] = False
    salt_file: Annotated[
        pathlib.Path | None,
        Setting(
            "--salt-file",
            FILE,
            "the secret that --salt-by-client makes salts with, the same for all replicas",
            by_default="kept in --state-dir, else new with each start",
        ),
    ] = None
    admin_host: Annotated[
        str | None, Setting("--admin-host", "HOST", "where --admin-port listens", by_default="--host")
    ] = None
    admin_port: Annotated[
        int | None,
        Setting(
            "--admin-port",
            PORT,
            "serve /status, /metrics, /explain, /doctor and /instances/* here and no longer on --port",
            least=0,
            most=65535,
            more="`/v1/load_lora_adapter` and `/v1/unload_lora_adapter` too.",
        ),
    ] = None
    tls_cert: Annotated[
        pathlib.Path | None,
        Setting("--tls-cert", FILE, "the certificate chain to serve https with, on both ports (PEM)"),
    ] = None
    tls_key: Annotated[
        pathlib.Path | None, Setting("--tls-key", FILE, "its key, without a passphrase (PEM)")
    ] = None
    engine_api_key_file: Annotated[
        pathlib.Path | None,
        Setting(
            "--engine-api-key-file",
            FILE,
            "a file with the key that engines want; clients' Authorization is passed on only with neither"
            " file",
            doctor=True,
        ),
    ] = None
    """The file from which the engines' key was read."""
    engine_ca: Annotated[
        pathlib.Path | None,
        Setting(
            "--engine-ca",
            FILE,
            "the authorities that certify https:// engines (PEM)",
            by_default="the system's",
            doctor=True,
        ),
    ] = None
    allow_instances: Annotated[
        Sequence[str],
        Setting(
            "--allow-instances",
            "CIDR|HOSTGLOB",
            "networks and patterns of names that /instances/add may name (default: anything), and where"
            " engines may tell of event sources beside their own hosts (default: nowhere)",
            check=_check_patterns,
            doctor=True,
        ),
    ] = ()
    events_bind: Annotated[
        str | None,
        Setting(
            "--events-bind",
            "ADDRESS",
            "where to listen for engines whose publishers connect to kvproxy, or off",
            check=_check_address,
            by_default="the address of --host",
            doctor=True,
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check what depends on several settings. Raises ConfigError."""
        super().__post_init__()
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key are given together or not at all")
        if self.salt_by_client and self.api_key_file is None:
            raise ConfigError("--salt-by-client needs --api-key-file: clients are told apart by their keys")
        if self.salt_file is not None and not self.salt_by_client:
            raise ConfigError("--salt-file needs --salt-by-client")
        if self.admin_host is not None and self.admin_port is None:
            raise ConfigError("--admin-host needs --admin-port")
