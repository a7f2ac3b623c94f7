"""A flag that wants a number says which kind it wants, whatever it was given."""

import argparse


def seconds(text: str) -> float:
    """A number of seconds. Raises argparse.ArgumentTypeError; limits are for the configuration to check."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None


def whole(text: str) -> int:
    """A whole number. Raises argparse.ArgumentTypeError."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
