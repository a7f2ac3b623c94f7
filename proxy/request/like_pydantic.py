"""kvproxy reads members that it judges as vLLM's validator, pydantic, reads them: the same values pass."""

import re
from typing import Any

from proxy.errors import BadRequestError
from proxy.request.body import Body

_INTEGER = re.compile(r"\s*([+-]?)(?:0[0_]*(?=[0-9]))?([0-9]+(?:_[0-9]+)*)(?:\.0+)?\s*")
"""Zeros at the beginning may have any underscores between them."""
_MAX_DIGITS = 4300
_FLOATS_BELOW = 2.0**63
"""Pydantic takes no larger float as an integer."""


def whole_number(body: Body, name: str, *, nullable: bool) -> int | None:
    """An integer member as pydantic reads one: numbers without a fraction, digits in a string, booleans.

    None if it is absent, or null where it may be. Raises BadRequestError, which names the member.
    """
    value = body.value(name)
    if type(value) is int:
        return value
    if value is None and (nullable or name not in body):
        return None
    number = as_whole_number(value)
    if number is None:
        raise BadRequestError(f"{name} must be an integer", param=name)
    return number


def as_whole_number(value: Any) -> int | None:
    """The integer that pydantic makes of a value; None if it refuses it."""
    if value is None or type(value) is int:
        return value
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and (number := _INTEGER.fullmatch(value)):
        value = int(number[1] + number[2])
    if isinstance(value, float) and abs(value) < _FLOATS_BELOW and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) else None


_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})


def truth(value: Any, name: str) -> bool:
    """A boolean as pydantic reads one; null is false. Raises BadRequestError, which names the member."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, float) and value in {0.0, 1.0}:
        return bool(value)
    text = str(value).lower() if isinstance(value, (str, int)) else ""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise BadRequestError(f"{name} must be a boolean", param=name)
