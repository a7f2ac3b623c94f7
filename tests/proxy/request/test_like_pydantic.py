"""The members kvproxy judges itself are read as vLLM's validator, pydantic, reads them: neither more nor less
passes.

One that passed here and not there would be found by the decode engine alone, after prefilled blocks wait for
it.
"""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from proxy.errors import BadRequestError
from proxy.request.body import Body
from proxy.request.like_pydantic import truth, whole_number

SIGN_BEHIND_ZEROS = re.compile(r"0_*-")
"""Pydantic takes "0-1" for -1; kvproxy refuses it."""
DIGITS = st.from_regex(r"[ +\-]{0,2}[0-9_]{0,6}(\.[0-9_e]{0,4})?[ \n]{0,2}", fullmatch=True)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-1000, 1000).map(float),
    DIGITS,
    st.text(max_size=6),
    st.sampled_from(["yes", "No", "ON", "t", " true", "Off", "1", "0", "null", "\uff11", "\u0663"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


def _pydantic(kind: type[Any], value: Any) -> Any:
    """What pydantic makes of a value, in a list; empty if it takes it not."""
    try:
        return [TypeAdapter(kind).validate_python(value)]
    except ValidationError:
        return []


def _ours(read: Any) -> Any:
    try:
        return [read()]
    except BadRequestError:
        return []


@given(VALUES)
@example(2.0**63)
@example(-(2.0**63))
@example(2.0**62)
@example("9" * 4300)
@example("9" * 4301)
@example("2.")
@example(".0")
@example("1e1")
@example("1.0e1")
@example("-0.0")
@example("1_000.0")
@example("0_1")
@example("0__0")
@example("-00__1_2")
@example("0___")
@example("\u20031\u2003")
@settings(max_examples=300, derandomize=True, deadline=None)
def test_integers(value: Any) -> None:
    assume(not (isinstance(value, str) and SIGN_BEHIND_ZEROS.search(value)))
    body = Body.parse(msgspec.json.encode({"n": value}))
    ours = _ours(lambda: whole_number(body, "n", nullable=False))
    assert ours == _pydantic(int, body.value("n"))


@given(VALUES)
@example(1.0)
@example(0.0)
@example(-0.0)
@example(2)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_booleans(value: Any) -> None:
    ours = _ours(lambda: truth(value, "stream"))
    assert ours == ([False] if value is None else _pydantic(bool, value))


@pytest.mark.parametrize("text", [b"1e400", b"9" * 5000, b"-0", b"1.0", b"18446744073709551616", b"1e19"])
def test_numbers_that_only_json_can_write(text: bytes) -> None:
    body = Body.parse(b'{"n": ' + text + b"}")
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = object()
    assert _ours(lambda: whole_number(body, "n", nullable=False)) == _pydantic(int, value)
