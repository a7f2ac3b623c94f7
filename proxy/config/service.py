"""A `Config` that exists is valid: every setting was checked, and the error of a wrong one names its flag."""

from collections.abc import Mapping

import msgspec

from proxy.config.checks import check_seconds
from proxy.config.cors import Cors
from proxy.config.faults import Deadlines, Health, Retries
from proxy.config.instances import InstanceSpec
from proxy.config.overload import Admission
from proxy.config.security import Security
from proxy.config.state import State
from proxy.config.tiers import TIER_COSTS
from proxy.errors import ConfigError
from proxy.phases import Role

LEASE_MARGIN_S = 10.0
"""How much of a lease must be left when a decode leg is sent: the decode engine's first heartbeat comes only
once it has the request, at its next sixth of the lease, and may have to wait for its scheduler."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `kvproxy serve` can be told. Times are seconds, sizes MiB where the name says so."""

    model: str
    instances: tuple[InstanceSpec, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    connector: str = "nixl"
    policy: str = "cache_affinity"
    kv_events: bool = True
    tier_costs: Mapping[str, float] = TIER_COSTS
    """What reloading a token from a slower tier costs, in computed tokens."""
    tokenizer: str = "auto"
    """A directory, a name in the Hugging Face cache, `auto` or `engines`."""
    engine_api_key: str | None = None
    admin_api_key: str | None = None
    log_level: str = "info"
    startup_timeout_s: float = 600.0
    stream_keepalive_s: float = 0.0
    """After so long without a beginning a stream is answered 200, with a comment each time; 0: it is waited for."""
    drain_delay_s: float = 0.0
    shutdown_timeout_s: float = 30.0
    kv_lease_s: float = 30.0
    decision_headers: bool = False
    max_body_mb: int = 64
    deadlines: Deadlines = Deadlines()
    retries: Retries = Retries()
    health: Health = Health()
    admission: Admission = Admission()
    security: Security = Security()
    cors: Cors = Cors()
    state: State = State()

    def __post_init__(self) -> None:
        """Check what one setting alone cannot show. Raises ConfigError."""
        if not self.model:
            raise ConfigError("--model must name the model the engines serve")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port} is not a port: give 0 to 65535")
        if not self.tokenizer:
            raise ConfigError("--tokenizer must be a directory, a model's name, auto or engines")
        check_seconds("--kv-lease-s", self.kv_lease_s)
        if self.kv_lease_s <= LEASE_MARGIN_S:
            raise ConfigError(
                f"--kv-lease-s {self.kv_lease_s:g} is too short: it must exceed {LEASE_MARGIN_S:g} s, the margin"
                " kept for the decode engine's first heartbeat (and equal the engines' kv_lease_duration)"
            )
        if self.deadlines.connect_s > LEASE_MARGIN_S:
            raise ConfigError(
                f"--connect-timeout {self.deadlines.connect_s:g} is too long: a decode leg that connects later than"
                f" after {LEASE_MARGIN_S:g} s may find its blocks gone"
            )
        check_seconds("--startup-timeout", self.startup_timeout_s)
        check_seconds("--stream-keepalive", self.stream_keepalive_s, zero=True)
        check_seconds("--drain-delay", self.drain_delay_s, zero=True)
        check_seconds("--shutdown-timeout", self.shutdown_timeout_s, zero=True)
        if self.max_body_mb < 1:
            raise ConfigError("--max-body-mb must be at least 1")
        admin = self.security
        if admin.admin_port == self.port != 0 and (admin.admin_host or self.host) == self.host:
            raise ConfigError(f"--admin-port {self.port} is --port already: give another")
        seen: dict[str, Role] = {}
        for spec in self.instances:
            if spec.address in seen:
                first = seen[spec.address]
                raise ConfigError(
                    f"--{spec.role} {spec.address} is given twice"
                    + (
                        f" (first as --{first}); an instance that does both is given once, as --both"
                        if first is not spec.role
                        else ""
                    )
                )
            seen[spec.address] = spec.role
