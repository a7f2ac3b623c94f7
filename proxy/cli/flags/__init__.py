"""`kvproxy serve` and `kvproxy doctor`: the words of the command line and what they mean."""

from proxy.cli.flags.commands import fail
from proxy.cli.flags.reading import Arguments, read_arguments, read_config

__all__ = ["Arguments", "fail", "read_arguments", "read_config"]
