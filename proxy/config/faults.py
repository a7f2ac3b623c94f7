"""What kvproxy does about engines that fail: how long it waits, how often it tries again, how it checks them."""

import msgspec

from proxy.config.checks import check_least, check_seconds
from proxy.errors import ConfigError


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long each phase of a request may take, in seconds. A leg that takes longer has failed."""

    connect_s: float = 5.0
    """To connect to an engine."""
    prefill_s: float = 300.0
    """From sending a prefill leg to the end of its answer."""
    first_byte_s: float = 600.0
    """From sending a decode leg until a stream holds something generated, or to the whole of an unstreamed answer."""
    chunk_s: float = 120.0
    """Between two pieces of a stream that are no comments."""
    request_s: float = 0.0
    """For the whole of a request, 0 for no limit; a client's X-Request-Timeout-Ms can only shorten it."""
    client_stall_s: float = 300.0
    """For a client to take anything of an answer that waits for it; then its connection is cut."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check_seconds("--connect-timeout", self.connect_s)
        check_seconds("--prefill-timeout", self.prefill_s)
        check_seconds("--first-byte-timeout", self.first_byte_s)
        check_seconds("--chunk-timeout", self.chunk_s)
        check_seconds("--request-timeout", self.request_s, zero=True)
        check_seconds("--client-stall-timeout", self.client_stall_s)


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How often a failed attempt may be followed by another."""

    max_attempts: int = 3
    """Of one request, the first included; leaving an instance that has died is none."""
    budget: float = 0.2
    """The share of the running requests that may be in a retry at one moment; some always may."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check_least("--max-attempts", self.max_attempts, 1)
        if not 0 <= self.budget <= 1:
            raise ConfigError(f"--retry-budget must be a share from 0 to 1, not {self.budget:g}")


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How engines are checked, in seconds."""

    interval_s: float = 2.0
    """From the beginning of a check of an instance to that of the next, give or take a fifth."""
    timeout_s: float = 2.4
    """For the answer to a check. A frozen engine is found within 1.2 intervals and three timeouts: 9.6 s."""
    slow_start_s: float = 10.0
    """How long an instance that came back, or was added, takes to get its full share of legs; 0 for at once."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check_seconds("--health-interval", self.interval_s)
        check_seconds("--health-timeout", self.timeout_s)
        check_seconds("--slow-start", self.slow_start_s, zero=True)
