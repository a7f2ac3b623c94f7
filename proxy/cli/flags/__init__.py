"""The command lines of `kvproxy serve` and `kvproxy doctor`, and the `Config` they give."""

from proxy.cli.flags.commands import fail
from proxy.cli.flags.reading import Arguments, read_arguments, read_config

__all__ = ["Arguments", "fail", "read_arguments", "read_config"]
