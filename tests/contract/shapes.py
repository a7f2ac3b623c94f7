"""A JSON answer against a pattern: the same keys in the same order, and values equal or of a type."""

from collections.abc import Iterator
from typing import Any


def misfits(found: Any, pattern: Any, where: str = "answer") -> Iterator[str]:
    """Yield what does not fit, one readable line each.

    A type in the pattern stands for any value of it, None for null; an object must have its keys in the
    pattern's order; a list must have as many items, unless the pattern's is [item, ...]: any number, at least
    one.
    """
    if isinstance(pattern, type):
        if not isinstance(found, pattern) or (pattern is int and isinstance(found, bool)):
            yield f"{where} is {found!r}, no {pattern.__name__}"
    elif isinstance(pattern, dict):
        if not isinstance(found, dict) or list(found) != list(pattern):
            yield f"{where} has {list(found) if isinstance(found, dict) else found!r}, not {list(pattern)}"
            return
        for key, part in pattern.items():
            yield from misfits(found[key], part, f"{where}.{key}")
    elif isinstance(pattern, list):
        many = pattern[1:] == [...]
        if not isinstance(found, list) or (not found if many else len(found) != len(pattern)):
            yield f"{where} is {found!r}"
            return
        for index, item in enumerate(found):
            yield from misfits(item, pattern[0 if many else index], f"{where}[{index}]")
    elif found != pattern:
        yield f"{where} is {found!r}, not {pattern!r}"


def assert_fits(found: Any, pattern: Any) -> None:
    assert list(misfits(found, pattern)) == []
