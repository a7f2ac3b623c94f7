"""The command lines of `kvproxy serve` and `kvproxy doctor`, and the `Config` they give."""

from proxy.cli.flags.commands import empty_parser, fail
from proxy.cli.flags.reading import Arguments, read_arguments, read_config

__all__ = ["Arguments", "empty_parser", "fail", "read_arguments", "read_config"]
