"""A body is passed on value for value; what is no sane JSON object is refused with a 400."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadRequestError
from proxy.request.body import Body
from proxy.request.outline import MAX_DEPTH


def test_numbers_strings_and_unknown_members_keep_their_text() -> None:
    data = b'{"temperature": 0.70, "seed": 1e2, "x": {"big": 12345678901234567890123, "s": "\\u00e9"}}'
    body = Body.parse(data).changed({"n": 1})
    assert body.encoded() == (
        b'{"temperature":0.70,"seed":1e2,"x":{"big": 12345678901234567890123, "s": "\\u00e9"},"n":1}'
    )


def test_members_are_found_by_decoded_name() -> None:
    body = Body.parse(b'{"\\u006b": 1, "a": 2}')
    assert "k" in body
    assert body.changed(drop=["k"]).encoded() == b'{"a":2}'


def test_a_name_given_twice_keeps_its_last_value() -> None:
    assert Body.parse(b'{"a": 1, "a": 2}').value("a") == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"  \n",
        b"[]",
        b"1",
        b"null",
        b'"x"',
        b"{",
        b'{"a":}',
        b'{"a":1} x',
        b"{'a':1}",
        b'{"a":NaN}',
        b"\xff\xfe",
        b'{"a":' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
        b'{"a":' * 100_000,
    ],
)
def test_a_body_that_is_no_sane_object_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        Body.parse(data)


def test_brackets_in_strings_are_not_depth() -> None:
    text = "[{" * 1000 + '\\"' + "[" * 1000
    data = msgspec.json.encode({"a": text})
    assert Body.parse(data).value("a") == text


def test_deep_but_sane_nesting_passes() -> None:
    depth = MAX_DEPTH - 1
    assert Body.parse(b'{"a":' + b"[" * depth + b"]" * depth + b"}").names() == {"a"}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _json, max_size=6), st.dictionaries(st.text(), _json, max_size=3))
def test_changes_are_those_of_a_dict(members: dict[str, object], put: dict[str, object]) -> None:
    drop = list(members)[:2]
    body = Body.parse(msgspec.json.encode(members)).changed(put, drop)
    expected = {k: v for k, v in members.items() if k not in drop} | put
    assert msgspec.json.decode(body.encoded()) == expected


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        (rb'{"a": "\ud83d\ude00"}', True),
        (rb'{"a": "\uD83D\uDE00 \u00e9 \n"}', True),
        (rb'{"a": "\\ud800"}', True),  # a backslash, then plain letters
        ('{"a": "\u00e9\U0001f600"}'.encode(), True),
        (rb'{"a": "\ud800"}', False),
        (rb'{"a": "\\\ud800"}', False),
        (rb'{"a": "\udc00\ud800"}', False),
        (rb'{"a": "\ud83d\ude00\udc00"}', False),
        (rb'{"\ud800": 1}', False),
        (b'{"a": "\xed\xa0\x80"}', False),
        (b'{"a": "\xff"}', False),
        (b'{"a": "\xc3', False),
        (b'{"a": "' + b"x" * (1 << 20) + '\u00e9"}'.encode(), True),
        (b'{"a": "' + b"x" * ((1 << 20) - 8) + '\u00e9"}'.encode(), True),  # over the edge of a piece
    ],
)
def test_half_characters_are_no_text(text: bytes, passes: bool) -> None:
    if passes:
        assert Body.parse(text).raw("a") == text[6:-1]
    else:
        with pytest.raises(BadRequestError):
            Body.parse(text)
