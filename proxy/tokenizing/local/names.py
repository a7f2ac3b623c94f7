"""Of many names that may stand in a text the longest at each place is found, and what all names cost there is
hardly more than what one costs.

`re` tries the alternatives of a group one after the other: with 6000 names in one group, at each place that
looks like the beginning of one, as many times. In a tree, names that begin alike are one alternative.
"""

import itertools
import re
from collections.abc import Sequence

_MAX_DEPTH = 32
"""The most groups within each other. Python reads them recursively; the names of special tokens, counted ones
among them, need about ten."""


def pattern_of(names: Sequence[str]) -> re.Pattern[str]:
    """Finds what `a|b|c` would find, the longest names first. None of them may be empty."""
    return re.compile(_one_of(sorted(set(names)), 0, _MAX_DEPTH))


def _one_of(names: Sequence[str], at: int, depth: int) -> str:
    """The pattern of what stands behind the first `at` characters, which all names share; they are sorted."""
    at_end = len(names[0]) == at
    longer = names[1:] if at_end else names
    if not longer:
        return ""
    if depth == 0:
        longest_first = sorted(names, key=len, reverse=True)
        return f"(?:{'|'.join(re.escape(name[at:]) for name in longest_first)})"
    branches = []
    for _, group in itertools.groupby(longer, key=lambda name: name[at]):
        alike = list(group)
        end = _shared(alike[0], alike[-1], at)
        branches.append(re.escape(alike[0][at:end]) + _one_of(alike, end, depth - 1))
    return f"(?:{'|'.join(branches)}){'?' if at_end else ''}"


def _shared(first: str, last: str, at: int) -> int:
    """How many characters two names, and all that are sorted between them, begin with."""
    end, most = at, min(len(first), len(last))
    while end < most and first[end] == last[end]:
        end += 1
    return end
