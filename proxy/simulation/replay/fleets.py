"""A fleet is written as counts of roles, `4p4d` or `8b`, and its instances are named so."""

import re

from proxy.errors import ConfigError
from proxy.phases import Role

_ROLES = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}
_WHOLE = re.compile(r"(\d+[pdb])+")
MAX_INSTANCES = 1024
"""More instances than this are a slip of the finger."""


def parse_fleet(text: str) -> list[tuple[str, Role]]:
    """The addresses and roles of `4p4d` (prefill, decode), `8b` (both), or of a mixture. Raises ConfigError
    if it is written otherwise, or cannot serve a request.
    """
    written = text.strip().lower()
    if not _WHOLE.fullmatch(written):
        raise ConfigError(f"--fleet {text!r}: write counts with p, d or b behind them, such as 4p4d or 8b")
    found: list[tuple[str, Role]] = []
    for count, letter in re.findall(r"(\d+)([pdb])", written):
        begun = sum(role is _ROLES[letter] for _, role in found)
        if begun + int(count) > MAX_INSTANCES:
            raise ConfigError(f"--fleet {text!r}: at most {MAX_INSTANCES} of a kind")
        found += [(f"{letter}{number}:1", _ROLES[letter]) for number in range(begun, begun + int(count))]
    roles = {role for _, role in found}
    if not (Role.BOTH in roles or {Role.PREFILL, Role.DECODE} <= roles):
        raise ConfigError(f"--fleet {text!r}: it needs instances for prefill and for decode, or for both")
    return found
