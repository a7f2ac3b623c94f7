"""Checks that several settings share; their errors name the flag."""

import math

from proxy.errors import ConfigError


def check_seconds(flag: str, seconds: float, *, zero: bool = False) -> None:
    """Raises ConfigError unless `seconds` is a finite number above 0, or 0 where that means something."""
    if not math.isfinite(seconds):
        raise ConfigError(f"{flag} must be a number of seconds, not {seconds}")
    if seconds < 0 or (seconds == 0 and not zero):
        raise ConfigError(f"{flag} must be {'0 seconds or more' if zero else 'more than 0 seconds'}")


def check_least(flag: str, value: float, least: float) -> None:
    """Raises ConfigError unless `value` is a finite number of at least `least`."""
    if not (math.isfinite(value) and value >= least):
        raise ConfigError(f"{flag} must be at least {least:g}, not {value:g}")
