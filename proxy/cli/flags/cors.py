"""The flags for browsers are vLLM's: same names, same defaults."""

import argparse

from proxy.config import Cors
from proxy.config.cors import read_words

_LISTS = (
    ("--allowed-origins", "ORIGIN", "origins whose pages may read answers, * for any (default: none)"),
    ("--allowed-methods", "METHOD", "methods they may use (default: *)"),
    ("--allowed-headers", "NAME", "headers they may send (default: *)"),
)


def add_cors(group: "argparse._ArgumentGroup") -> None:
    """What pages of other origins may do; each list is words, or one JSON list as for vLLM."""
    for flag, metavar, what in _LISTS:
        group.add_argument(flag, nargs="+", action="extend", metavar=metavar, help=what)
    group.add_argument(
        "--allow-credentials",
        action="store_true",
        help="let browsers send cookies and the like; an origin is then named rather than *",
    )


def read_cors(args: argparse.Namespace) -> Cors:
    """The section of the configuration. Raises ConfigError."""
    given = {"allow_credentials": args.allow_credentials}
    for flag, _, _ in _LISTS:
        name = flag.removeprefix("--").replace("-", "_")
        if (texts := getattr(args, name)) is not None:
            given[name] = read_words(flag, texts)
    return Cors(**given)
