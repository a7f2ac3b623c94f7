"""A `Config` that exists is valid: every setting was checked, and the error of a wrong one names its flag."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from proxy.config.cors import Cors
from proxy.config.faults import Deadlines, Health, Retries
from proxy.config.instances import InstanceSpec, parse_instance
from proxy.config.overload import Admission
from proxy.config.recording import Recordings
from proxy.config.security import Security
from proxy.config.settings import MIB, PORT, SECONDS, Section, Setting, Under, check_header
from proxy.config.state import State
from proxy.config.tiers import TIER_COSTS, read_tier_costs
from proxy.errors import ConfigError
from proxy.phases import Role

LEASE_MARGIN_S = 10.0
"""Seconds of a lease that must be left when a decode leg is sent.

The decode engine's first heartbeat comes once it has the request, at its next sixth of the lease, and may
have to wait for its scheduler."""

LOG_LEVELS = ("debug", "info", "warning", "error")


def _instances(role: Role) -> Callable[[str, Sequence[str]], tuple[InstanceSpec, ...]]:
    return lambda flag, texts: tuple(parse_instance(text, role, origin=flag) for text in texts)


def _tier_costs(_flag: str, texts: Sequence[str]) -> Mapping[str, float]:
    return read_tier_costs(texts)


_PATH = re.compile(r"(?!.*//)(?!.*/\.{1,2}(/|$))/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]")


def _paths(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    for path in texts:
        if _PATH.fullmatch(path) is None:
            raise ConfigError(f"{flag} {path}: a path is like /v1/name, of letters, digits and . _ ~ -")
    return tuple(dict.fromkeys(texts))


def _check_model(flag: str, model: str) -> None:
    if not model:
        raise ConfigError(f"{flag} must name the model the engines serve")


def _check_tokenizer(flag: str, tokenizer: str) -> None:
    if not tokenizer:
        raise ConfigError(f"{flag} must be a directory, a model's name, auto or engines")


class Config(Section, frozen=True, kw_only=True):
    """All settings of `kvproxy serve`. Times are seconds, sizes MiB where the name says so."""

    model: Annotated[
        str,
        Setting(
            "--model",
            "MODEL",
            "the model name that all engines serve",
            short="-m",
            group="engines",
            check=_check_model,
            doctor=True,
            more="Adapters that they list in `/v1/models` are accepted too.",
        ),
    ]
    instances: Annotated[
        tuple[InstanceSpec, ...],
        Setting(
            "--prefill",
            "HOST:PORT",
            "prefill engines",
            short="-p",
            group="engines",
            read=_instances(Role.PREFILL),
            doctor=True,
        ),
        Setting(
            "--decode",
            "HOST:PORT",
            "decode engines",
            short="-d",
            group="engines",
            read=_instances(Role.DECODE),
            doctor=True,
        ),
        Setting(
            "--both",
            "HOST:PORT",
            "engines that do both: they serve a request in one leg",
            group="engines",
            read=_instances(Role.BOTH),
            doctor=True,
        ),
    ] = ()
    connector: Annotated[
        str,
        Setting(
            "--connector",
            "NAME",
            "how KV moves: {how_kv_moves}",
            names="connectors",
            group="engines",
            doctor=True,
        ),
    ] = "nixl"
    kv_lease_s: Annotated[
        float,
        Setting(
            "--kv-lease-s",
            SECONDS,
            "how long prefill engines hold blocks: their kv_lease_duration",
            above=0,
            group="engines",
            doctor=True,
            more="More than 10, the margin that is kept for the decode engine's first heartbeat.",
        ),
    ] = 30.0
    kv_events: Annotated[
        bool,
        Setting(
            "--kv-events",
            "",
            "auto follows the KV events of engines that publish them; off places by load",
            choices={"auto": True, "off": False},
            group="engines",
            doctor=True,
        ),
    ] = True
    policy: Annotated[
        str,
        Setting(
            "--policy",
            "POLICY",
            "how instances are picked: {policies}, or package.module:Class",
            group="routing",
            more="[What they do](policies.md).",
        ),
    ] = "least_ms"
    bypass_tokens: Annotated[
        int | None,
        Setting(
            "--bypass",
            "auto|off|TOKENS",
            "which requests skip the prefill engines, because a decode engine computes the prompt itself:"
            " auto, those for which the policy finds that cheaper; TOKENS, those with at most so many tokens"
            " left to compute there",
            words={"auto": None, "off": 0},
            least=0,
            group="routing",
            more="[Which policies weigh it, and what else it does](policies.md#one-leg-instead-of-two).",
            reloadable=True,
        ),
    ] = None
    """None: the policy decides, if it weighs that; 0: none do, since a prompt's last token is always
    computed."""
    latency_profile: Annotated[
        str,
        Setting(
            "--latency-profile",
            "NAME|FILE",
            "what is believed of the engines' speed until it is learned, for policies of milliseconds:"
            " {profiles}, or a file that kvproxy fit has written",
            group="routing",
            more="[How it is learned](latency.md).",
        ),
    ] = "unknown"
    scrape_s: Annotated[
        float,
        Setting(
            "--scrape-s",
            SECONDS,
            "how often engines are asked how many requests they run and how full they are, so that others'"
            " requests count too; 0: never",
            least=0,
            group="routing",
            more="Only for policies of milliseconds; nobody else would read it.",
        ),
    ] = 1.0
    session_header: Annotated[
        str,
        Setting(
            "--session-header",
            "NAME",
            "the header that names a request's session, for the policy session",
            check=check_header,
            group="routing",
            more="[What else may name it](policies.md#sessions).",
        ),
    ] = "X-Session-ID"
    decision_headers: Annotated[
        bool,
        Setting(
            "--decision-headers",
            "",
            "answers carry X-Kvproxy-Prefill, X-Kvproxy-Decode and X-Kvproxy-Cached-Tokens (predicted)",
            group="routing",
            more="The last tells [what others have sent](security.md#tenants), where they share caches.",
            reloadable=True,
        ),
    ] = False
    tier_costs: Annotated[
        Mapping[str, float],
        Setting(
            "--tier-cost",
            "TIER=SHARE",
            "what reloading a token from a tier slower than GPU costs, as a share of computing it; tiers"
            " that are not named do not count",
            read=_tier_costs,
            group="routing",
            more="[Which tiers](policies.md). In a file also `{CPU = 0.2}`.",
        ),
    ] = TIER_COSTS
    tokenizer: Annotated[
        str,
        Setting(
            "--tokenizer",
            "PATH|NAME",
            "the model's tokenizer and chat template: a directory, or a name in the Hugging Face cache"
            " (nothing is downloaded); auto uses the engines' own directory if it can be read here, else"
            " asks engines, as engines always does",
            check=_check_tokenizer,
            group="routing",
            doctor=True,
            more="[How that is checked](tokens.md).",
        ),
    ] = "auto"
    host: Annotated[
        str,
        Setting("--host", "HOST", "address to listen on, :: for all of IPv6 and IPv4", group="service"),
    ] = "127.0.0.1"
    port: Annotated[
        int, Setting("--port", PORT, "port to listen on", least=0, most=65535, group="service")
    ] = 8000
    max_body_mb: Annotated[
        int,
        Setting("--max-body-mb", MIB, "largest request body", least=1, group="service", more="413 beyond."),
    ] = 64
    passed: Annotated[
        tuple[str, ...],
        Setting(
            "--pass",
            "PATH",
            "more paths that one engine serves whole, beside the routes of vLLM that kvproxy knows",
            read=_paths,
            group="service",
            more="[Which these are, and how requests are passed on](routes.md).",
        ),
    ] = ()
    startup_timeout_s: Annotated[
        float,
        Setting(
            "--startup-timeout",
            SECONDS,
            "end with exit code 1 if no request can be served after so many seconds",
            above=0,
            group="service",
        ),
    ] = 600.0
    stream_keepalive_s: Annotated[
        float,
        Setting(
            "--stream-keepalive",
            SECONDS,
            "answer streams with 200 and comments after S seconds without a beginning, and every S seconds;"
            " whatever fails later is then an error event and a cut, never a status",
            least=0,
            by_default="off",
            group="service",
            more="[What that costs](failures.md#comments-while-a-stream-waits).",
            reloadable=True,
        ),
    ] = 0.0
    drain_delay_s: Annotated[
        float,
        Setting(
            "--drain-delay",
            SECONDS,
            "how long /ready fails after SIGTERM or Ctrl-C while all is still served, so that load balancers"
            " take notice before the port closes",
            least=0,
            group="service",
            more="[Kubernetes](operating.md#kubernetes).",
        ),
    ] = 0.0
    shutdown_timeout_s: Annotated[
        float,
        Setting(
            "--shutdown-timeout",
            SECONDS,
            "how long running requests may take to end after SIGTERM or Ctrl-C",
            least=0,
            group="service",
            more="Then they are cut.",
        ),
    ] = 30.0
    state: Annotated[State, Under("service")] = State()
    recordings: Annotated[Recordings, Under("service")] = Recordings()
    log_level: Annotated[
        str,
        Setting(
            "--log-level",
            "LEVEL",
            "info logs a line a request",
            choices={level: level for level in LOG_LEVELS},
            group="service",
            doctor=True,
        ),
    ] = "info"
    deadlines: Annotated[Deadlines, Under("faults")] = Deadlines()
    retries: Annotated[Retries, Under("faults")] = Retries()
    health: Annotated[Health, Under("faults")] = Health()
    admission: Annotated[Admission, Under("overload")] = Admission()
    security: Annotated[Security, Under("security")] = Security()
    cors: Annotated[Cors, Under("browsers")] = Cors()
    membership: Sequence[Section] = ()
    """The settings of the membership sources of other packages, which have flags of their own."""
    engine_api_key: str | None = None
    """The content of the file of `--engine-api-key-file`."""
    admin_api_key: Annotated[
        str | None,
        Setting(
            "",
            "KEY",
            "the key that /instances/*, /v1/load_lora_adapter, /v1/unload_lora_adapter, /explain and /doctor"
            " need in X-API-Key",
            environment="ADMIN_API_KEY",
            group="security",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check what depends on several settings. Raises ConfigError."""
        super().__post_init__()
        if self.kv_lease_s <= LEASE_MARGIN_S:
            raise ConfigError(
                f"--kv-lease-s {self.kv_lease_s:g} is too short: it must exceed {LEASE_MARGIN_S:g} s, the "
                "margin kept for the decode engine's first heartbeat (and equal the engines' "
                "kv_lease_duration)"
            )
        if self.deadlines.connect_s > LEASE_MARGIN_S:
            raise ConfigError(
                f"--connect-timeout {self.deadlines.connect_s:g} is too long: a decode leg that connects "
                f"later than after {LEASE_MARGIN_S:g} s may find its blocks gone"
            )
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
