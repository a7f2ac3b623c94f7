"""Each flag is described in one place, with the default that its section of the configuration has."""

import argparse
import pathlib

import msgspec

from proxy.cli.flags.numbers import seconds, whole
from proxy.config import TIER_COSTS, Admission, Deadlines, Health, Retries, State, WhenNoPrefill
from proxy.connectors import CONNECTORS
from proxy.scheduling.policies import POLICIES

LOG_LEVELS = ("debug", "info", "warning", "error")


def add_engines(group: "argparse._ArgumentGroup") -> None:
    """Which engines there are, and how blocks move between them."""
    group.add_argument("-m", "--model", required=True, help="the model name that all engines serve")
    for flags, what in (
        (("-p", "--prefill"), "prefill engines"),
        (("-d", "--decode"), "decode engines"),
        (("--both",), "engines that do both: they serve a request in one leg"),
    ):
        group.add_argument(*flags, nargs="+", action="extend", default=[], metavar="HOST:PORT", help=what)
    group.add_argument(
        "--connector",
        choices=list(CONNECTORS),
        default="nixl",
        help="how KV moves: nixl hands transfer params from leg to leg, shared sends two plain legs"
        " for engines with a shared store (default: %(default)s)",
    )
    group.add_argument(
        "--kv-lease-s",
        type=seconds,
        default=30.0,
        metavar="S",
        help="how long prefill engines hold blocks: their kv_lease_duration (default: %(default)g)",
    )
    group.add_argument(
        "--kv-events",
        choices=["auto", "off"],
        default="auto",
        help="auto follows the KV events of engines that publish them; off places by load (default: %(default)s)",
    )


def add_routing(group: "argparse._ArgumentGroup") -> None:
    """How instances are picked."""
    group.add_argument(
        "--policy",
        default="cache_affinity",
        help=f"how instances are picked: {', '.join(POLICIES)}, or package.module:Class (default: %(default)s)",
    )
    group.add_argument(
        "--decision-headers",
        action="store_true",
        help="answers carry X-Kvproxy-Prefill, X-Kvproxy-Decode and X-Kvproxy-Cached-Tokens (predicted)",
    )
    group.add_argument(
        "--tier-cost",
        nargs="+",
        action="extend",
        metavar="TIER=SHARE",
        help="what reloading a token from a tier slower than GPU costs, as a share of computing it; tiers that are"
        f" not named do not count (default: {' '.join(f'{tier}={cost:g}' for tier, cost in TIER_COSTS.items())})",
    )


def add_tokenizer(group: "argparse._ArgumentGroup") -> None:
    """How prompts become tokens."""
    group.add_argument(
        "--tokenizer",
        default="auto",
        metavar="PATH|NAME",
        help="the model's tokenizer and chat template: a directory, or a name in the Hugging Face cache (nothing is"
        " downloaded); auto uses the engines' own directory if it can be read here, else asks engines, as"
        " engines always does (default: %(default)s)",
    )


def add_service(group: "argparse._ArgumentGroup") -> None:
    """Where it listens, and how it starts, stops and remembers."""
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on, :: for all of IPv6 and IPv4 (default: %(default)s)",
    )
    group.add_argument("--port", type=whole, default=8000, help="port to listen on (default: %(default)s)")
    group.add_argument(
        "--max-body-mb",
        type=whole,
        default=64,
        metavar="MIB",
        help="largest request body (default: %(default)s)",
    )
    group.add_argument(
        "--startup-timeout",
        type=seconds,
        default=600.0,
        metavar="S",
        help="end with exit code 1 if no request can be served after so many seconds (default: %(default)g)",
    )
    group.add_argument(
        "--stream-keepalive",
        type=seconds,
        default=0.0,
        metavar="S",
        help="answer streams with 200 and comments after S seconds without a beginning, and every S seconds; whatever fails"
        " later is then an error event and a cut, never a status (default: %(default)g, off)",
    )
    group.add_argument(
        "--drain-delay",
        type=seconds,
        default=0.0,
        metavar="S",
        help="how long /ready fails after SIGTERM or Ctrl-C while all is still served, so that load balancers"
        " take notice before the port closes (default: %(default)g)",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="how long running requests may take to end after SIGTERM or Ctrl-C (default: %(default)g)",
    )
    group.add_argument(
        "--state-dir",
        type=pathlib.Path,
        metavar="DIR",
        help="keep what is known of the engines' caches and what /instances/* changed there, so that a restart loses"
        " nothing; with --kv-events off the latter only; a directory of this kvproxy's own, made if it does not exist",
    )
    add_number(
        group,
        "--state-interval",
        State,
        "state_interval_s",
        "S",
        "how often what changed is written there",
    )


def add_log_level(group: "argparse._ArgumentGroup", default: str, what: str) -> None:
    """`what` of the log is shown at which level."""
    group.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default=default,
        help=f"{what} (default: %(default)s)",
    )


def add_number(
    group: "argparse._ArgumentGroup",
    flag: str,
    section: type[msgspec.Struct],
    field: str,
    unit: str,
    what: str,
) -> None:
    """A flag for a number, with the default that the section of the configuration has for it."""
    default = getattr(section(), field)
    group.add_argument(
        flag,
        dest=field,
        type=seconds if isinstance(default, float) else whole,
        default=default,
        metavar=unit,
        help=f"{what} (default: %(default)g)",
    )


CONNECT_TIMEOUT = (
    "--connect-timeout",
    Deadlines,
    "connect_s",
    "S",
    "how long connecting to an engine may take",
)


def add_faults(group: "argparse._ArgumentGroup") -> None:
    """Deadlines, retries and health."""
    for flag, section, field, unit, what in (
        CONNECT_TIMEOUT,
        ("--prefill-timeout", Deadlines, "prefill_s", "S", "how long a prefill leg may take"),
        (
            "--first-byte-timeout",
            Deadlines,
            "first_byte_s",
            "S",
            "how long a decode leg may take until it has generated something, or an unstreamed one altogether",
        ),
        ("--chunk-timeout", Deadlines, "chunk_s", "S", "how long a stream may pause; comments do not count"),
        (
            "--request-timeout",
            Deadlines,
            "request_s",
            "S",
            "how long a request may take in all, 0 for no limit; X-Request-Timeout-Ms can shorten it",
        ),
        (
            "--client-stall-timeout",
            Deadlines,
            "client_stall_s",
            "S",
            "how long a client may take nothing of an answer that waits for it",
        ),
        ("--max-attempts", Retries, "max_attempts", "N", "attempts of one request at engines that live"),
        (
            "--retry-budget",
            Retries,
            "budget",
            "SHARE",
            "the share of running requests that may be in a retry; three always may",
        ),
        ("--health-interval", Health, "interval_s", "S", "how often each engine is checked"),
        ("--health-timeout", Health, "timeout_s", "S", "how long the answer to a check may take"),
        (
            "--slow-start",
            Health,
            "slow_start_s",
            "S",
            "how long an engine that came back or was added takes to get its full share, 0 for at once",
        ),
    ):
        add_number(group, flag, section, field, unit, what)


def add_overload(group: "argparse._ArgumentGroup") -> None:
    """How much is let in, and what waits."""
    for flag, field, unit, what in (
        (
            "--max-prefill-tokens",
            "max_prefill_tokens",
            "N",
            "outstanding tokens of one engine's prefill legs, 0 for no limit",
        ),
        ("--max-decode-tokens", "max_decode_tokens", "N", "the same of its decode legs, answers included"),
        (
            "--expected-answer-tokens",
            "expected_answer_tokens",
            "N",
            "what an answer counts for that may become longer, whatever its max_tokens",
        ),
        (
            "--max-client-requests",
            "max_client_requests",
            "N",
            "requests of one client that are served at once, 0 for no limit; the rest waits",
        ),
        ("--max-queue", "max_queue", "N", "requests that may wait; one more is answered 429"),
        ("--queue-timeout", "queue_timeout_s", "S", "how long a request may wait for an engine"),
        ("--max-bodies-mb", "max_bodies_mb", "MIB", "all request bodies in memory together"),
    ):
        add_number(group, flag, Admission, field, unit, what)
    group.add_argument(
        "--max-client-priority",
        type=whole,
        metavar="N",
        help="the smallest priority a client may claim, for lower goes first: 0 lets nobody go before those that"
        " claim nothing (default: any)",
    )
    group.add_argument(
        "--client-header",
        metavar="NAME",
        help="the header that tells clients apart when they queue (default: the name of the API key)",
    )
    group.add_argument(
        "--when-no-prefill",
        choices=[choice.value for choice in WhenNoPrefill],
        default=Admission().when_no_prefill.value,
        help="with no usable prefill engine: wait up to --queue-timeout, decode all of it on a decode engine,"
        " or fail at once (default: %(default)s)",
    )


def add_security(group: "argparse._ArgumentGroup") -> None:
    """Who may ask, and by which way."""
    group.add_argument(
        "--api-key-file",
        type=pathlib.Path,
        metavar="FILE",
        help="clients' keys, one NAME KEY or NAME@GROUP KEY a line, wanted for all of /v1; without it everybody may ask",
    )
    group.add_argument(
        "--salt-by-client",
        action="store_true",
        help="what one key's prompts leave in caches is found for that key, or its GROUP, alone: usage and timing tell"
        " nobody of others' prompts, and nothing is shared",
    )
    group.add_argument(
        "--salt-file",
        type=pathlib.Path,
        metavar="FILE",
        help="the secret that --salt-by-client makes salts with, the same for all replicas (default: kept in --state-dir,"
        " else new with each start)",
    )
    group.add_argument("--admin-host", metavar="HOST", help="where --admin-port listens (default: --host)")
    group.add_argument(
        "--admin-port",
        type=whole,
        metavar="PORT",
        help="serve /status, /metrics, /explain, /doctor and /instances/* here and no longer on --port",
    )
    for flag, what in (
        ("--tls-cert", "the certificate chain to serve https with, on both ports (PEM)"),
        ("--tls-key", "its key, without a passphrase (PEM)"),
    ):
        group.add_argument(flag, type=pathlib.Path, metavar="FILE", help=what)


def add_engine_security(group: "argparse._ArgumentGroup") -> None:
    """How engines are spoken to."""
    group.add_argument(
        "--engine-api-key-file",
        type=pathlib.Path,
        metavar="FILE",
        help="a file with the key that engines want; clients' Authorization is passed on only with neither file",
    )
    group.add_argument(
        "--engine-ca",
        type=pathlib.Path,
        metavar="FILE",
        help="the authorities that certify https:// engines (PEM; default: the system's)",
    )
    group.add_argument(
        "--allow-instances",
        nargs="+",
        action="extend",
        default=[],
        metavar="CIDR|HOSTGLOB",
        help="networks and patterns of names that /instances/add may name (default: anything), and where engines may tell of"
        " event sources beside their own hosts (default: nowhere)",
    )
    group.add_argument(
        "--events-bind",
        metavar="ADDRESS",
        help="where to listen for engines whose publishers connect to kvproxy, or off (default: the address of --host)",
    )
