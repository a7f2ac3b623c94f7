"""What kvproxy does about engines that fail: how long it waits, when it tries again, and how it checks
them.
"""

from typing import Annotated

from proxy.config.settings import COUNT, SECONDS, SHARE, Section, Setting


class Deadlines(Section, frozen=True, kw_only=True):
    """How long each phase of a request may take, in seconds. A leg that takes longer has failed."""

    connect_s: Annotated[
        float,
        Setting(
            "--connect-timeout",
            SECONDS,
            "how long connecting to an engine may take",
            above=0,
            doctor=True,
            more="At most 10.",
        ),
    ] = 5.0
    prefill_s: Annotated[
        float,
        Setting("--prefill-timeout", SECONDS, "how long a prefill leg may take", above=0, reloadable=True),
    ] = 300.0
    """From sending a prefill leg to the end of its answer."""
    first_byte_s: Annotated[
        float,
        Setting(
            "--first-byte-timeout",
            SECONDS,
            "how long a decode leg may take until it has generated something, or an unstreamed one"
            " altogether",
            above=0,
            reloadable=True,
        ),
    ] = 600.0
    """From sending a decode leg until its stream has something generated, or until the end of an unstreamed
    answer."""
    chunk_s: Annotated[
        float,
        Setting(
            "--chunk-timeout",
            SECONDS,
            "how long a stream may pause; comments do not count",
            above=0,
            reloadable=True,
        ),
    ] = 120.0
    request_s: Annotated[
        float,
        Setting(
            "--request-timeout",
            SECONDS,
            "how long a request may take in all, 0 for no limit; X-Request-Timeout-Ms can shorten it",
            least=0,
            reloadable=True,
        ),
    ] = 0.0
    client_stall_s: Annotated[
        float,
        Setting(
            "--client-stall-timeout",
            SECONDS,
            "how long a client may take nothing of an answer that waits for it",
            above=0,
            more="Then its connection is cut.",
            reloadable=True,
        ),
    ] = 300.0


class Retries(Section, frozen=True, kw_only=True):
    """How often a failed attempt may be followed by another."""

    max_attempts: Annotated[
        int,
        Setting(
            "--max-attempts",
            COUNT,
            "attempts of one request at engines that live",
            least=1,
            more="The first is one of them; leaving an engine that has died is none.",
            reloadable=True,
        ),
    ] = 3
    budget: Annotated[
        float,
        Setting(
            "--retry-budget",
            SHARE,
            "the share of running requests that may be in a retry; three always may",
            least=0,
            most=1,
            reloadable=True,
        ),
    ] = 0.2


class Health(Section, frozen=True, kw_only=True):
    """How engines are checked, in seconds."""

    interval_s: Annotated[
        float,
        Setting("--health-interval", SECONDS, "how often each engine is checked", above=0, reloadable=True),
    ] = 2.0
    """Seconds between the beginnings of two checks of an instance, varied by a fifth either way."""
    timeout_s: Annotated[
        float, Setting("--health-timeout", SECONDS, "how long the answer to a check may take", above=0)
    ] = 2.4
    """A frozen engine is found within 1.2 intervals and three timeouts: 9.6 s."""
    slow_start_s: Annotated[
        float,
        Setting(
            "--slow-start",
            SECONDS,
            "how long an engine that came back or was added takes to get its full share, 0 for at once",
            least=0,
        ),
    ] = 10.0
