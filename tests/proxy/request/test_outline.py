"""What a body is made of is counted as a JSON decoder would count it, however it is cut into slices, and
before one reads it."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadRequestError
from proxy.request import dialects
from proxy.request.body import Body, Pieces, _depth, _items, _names_characters, _without_texts
from proxy.request.dialects import CHAT
from proxy.request.dialects.chat import MAX_MESSAGES, MAX_TOOLS
from proxy.request.generation import read_request
from proxy.request.json_pieces import TEXT_BYTES
from proxy.request.outline import (
    FEW_PARTS,
    LARGE_BODY_BYTES,
    LARGE_TEXT_BYTES,
    MANY_COMMAS,
    MANY_ESCAPES,
    MANY_TEXTS,
    MAX_DEPTH,
    MAX_MEMBERS,
    MAX_VALUES,
    is_large,
    outline,
    signs_of,
)

TEXTS = st.text(st.sampled_from('ab"\\,:[]{}é漢😀 \n'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99999) | st.floats(-2, 2) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, min_size=1, max_size=5)


def values_in(value: Any) -> int:
    """Containers, and commas between what they hold."""
    if not isinstance(value, list | dict):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(0, len(inner) - 1) + sum(map(values_in, inner))


def members_in(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(members_in, value.values()))
    return sum(map(members_in, value)) if isinstance(value, list) else 0


@given(OBJECTS, st.sampled_from([1, 2, 3, 7, 64, 1 << 18]), st.booleans(), st.sampled_from([None, 1]))
@settings(max_examples=300, deadline=None)
def test_an_outline_counts_what_a_decoder_reads(
    body: dict[str, Any], slice_bytes: int, ascii_only: bool, indent: int | None
) -> None:
    data = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode()
    found = outline(data, slice_bytes=slice_bytes)
    assert found.members == members_in(body)
    for span, (name, value) in zip(found.spans, body.items(), strict=True):
        assert json.loads(data[span.start : span.colon]) == name
        assert json.loads(data[span.colon + 1 : span.end]) == value
        assert span.values == values_in(value)
        if isinstance(value, list | dict) and value:
            assert span.items == len(value)
    read = Body.of_outline(data, found)
    assert {name: json.loads(read.raw(name) or b"") for name in read.names()} == body
    assert json.loads(bytes(read.to_send())) == body


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"x{}", b'{"a":1} x', b'{"a":1}}', b'{"a":1', b'{"a":"', b'{"a"}', b"{,}",
        b'{"a":1,}',
        b'{"a":1]', b'{"a":1}{"b":2}', b'"a"', b'{"a":1 "b":2}', b'{"a":[1,]}', b'{"a":tru}', b'{"a":"\xff"}',
        b'{"a":"\\ud800"}', b"{1:2}", b'{"a"x:1}', b'{"a":1,,"b":2}', b'{"a":[1 2]}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        Body.of_outline(data, outline(data))


def test_escaped_pairs_are_found_wherever_a_piece_ends() -> None:
    for before in range(TEXT_BYTES - 48, TEXT_BYTES + 2):
        text = b'{"a":"' + b"x" * before + b"\\ud83d\\ude00" * 5 + b'\\u4e2d\\\\\\""}'
        assert Body.of_outline(text, outline(text)).value("a")
        for half in (b"\\ud83d", b"\\ude00", b"\\ud83dx", b"\\ud83d\\u0041"):
            text = b'{"a":"' + b"x" * before + half + b" and more of it" * 3 + b'"}'
            with pytest.raises(BadRequestError, match=r"surrogate|escape"):
                Body.of_outline(text, outline(text))


def many(open_: bytes, each: bytes, count: int, close: bytes) -> bytes:
    return open_ + b",".join([each] * count) + close


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{" + b",".join(b'"m%d":1' % n for n in range(MAX_MEMBERS + 1)) + b"}", "members"),
        (many(b'{"x":[', b"[]", MAX_VALUES // 2 + 1, b"]}"), "values"),
        (many(b'{"x":[', b'"a"', MAX_VALUES + 2, b"]}"), "values"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested"),
    ],
    ids=["members", "lists", "texts", "depth"],
)
def test_more_than_any_request_has_is_refused_before_it_is_read(data: bytes, words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        outline(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (many(b'{"messages":[', b"{}", MAX_MESSAGES + 1, b"]}"), "messages has 16385 items"),
        (many(b'{"messages":[],"tools":[', b"{}", MAX_TOOLS + 1, b"]}"), "tools has 4097 items"),
        (b'{"messages":[],"model":"' + b"m" * 70_000 + b'"}', "model is longer"),
        (b'{"messages":[],"priority":[' + b"1," * 70_000 + b"1]}", "priority is longer"),
        (b'{"messages":[],"cache_salt":"' + b"m" * 70_000 + b'"}', "cache_salt is longer"),
        (b'{"messages":[],"vllm_xargs":{"a":"' + b"m" * 300_000 + b'"}}', "vllm_xargs is longer"),
        (b'{"messages":[],"' + b"m" * 5000 + b'":1}', "name is longer"),
        (
            many(b'{"messages":[],"stop_token_ids":[', b"1", MAX_VALUES + 2, b"]}"),
            "stop_token_ids has more than",
        ),
    ],
)
def test_long_parts_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadRequestError, match=words) as caught:
        read_request(dialects.CHAT, data, "tiny", outline(data))
    assert len(str(caught.value)) < 200


def test_a_small_body_has_no_more_members_either() -> None:
    data = b"{" + b",".join(b'"m%d":1' % n for n in range(MAX_MEMBERS + 1)) + b"}"
    with pytest.raises(BadRequestError, match="members"):
        Body.parse(data)


def test_a_long_list_of_numbers_is_taken_and_read_in_parts() -> None:
    data = b' {"prompt" : [ ' + b" 17 ,\n" * 400_000 + b'1 ] , "n":1} '
    found = outline(data)
    body = Body.of_outline(data, found)
    assert json.loads(body.raw("prompt") or b"") == [17] * 400_000 + [1]
    assert (found.values, found.items) == (0, 400_001)
    for bad in (b"1,,2", b"1,", b",1", b"1 2", b"1,x"):
        text = b'{"prompt":[' + b"17," * 300_000 + bad + b"]}"
        with pytest.raises(BadRequestError):
            Body.of_outline(text, outline(text))
        text = b'{"prompt":[' + bad + b",17" * 300_000 + b"]}"
        if bad != b"1,":
            with pytest.raises(BadRequestError):
                Body.of_outline(text, outline(text))


def test_many_values_make_a_small_body_a_large_one() -> None:
    assert not is_large(b'{"prompt":[' + b"[]," * MANY_COMMAS + b"1]}")
    assert is_large(b'{"prompt":[' + b"[]," * (MANY_COMMAS + 1) + b"1]}")


def test_many_numbers_are_split_where_they_come_in_unless_they_stand_among_much_else() -> None:
    numbers = b"1," * (2 * MANY_COMMAS) + b"1"
    assert not is_large(b'{"prompt":[' + numbers + b'],"stop":["a"]}')
    assert is_large(b'{"prompt":[' + numbers + b'],"stop":[' + b'"a",' * FEW_PARTS + b'"a"]}')
    assert is_large(b'{"prompt":[' + numbers + b'],"x":' + b"[" * FEW_PARTS + b"]" * FEW_PARTS + b"}")


@pytest.mark.parametrize("name", ["messages", "tools"])
def test_numbers_are_no_messages_however_many_they_are(name: str) -> None:
    numbers = b"[" + b"1," * (2 * MANY_COMMAS) + b"1]"
    data = b'{"messages":[],"%b":%b}' % (name.encode(), numbers)
    signs = signs_of(data)
    assert signs is not None
    with pytest.raises(BadRequestError, match=f"{name} has {2 * MANY_COMMAS + 1} items"):
        read_request(CHAT, data, "tiny", signs)


def test_commas_in_texts_and_in_items_are_no_items() -> None:
    text, numbers = "one, two, " * MANY_COMMAS, list(range(2 * MANY_COMMAS))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": numbers}}}
    data = json.dumps({"messages": [{"role": "user", "content": text}], "tools": [tool, tool]}).encode()
    signs = signs_of(data)
    assert signs is not None
    assert signs.is_flat
    body = read_request(CHAT, data, "tiny", signs).body
    assert (body.items_in("messages"), body.items_in("tools")) == (1, 2)
    assert 4 * MANY_COMMAS < body.values_in("tools") < 4 * MANY_COMMAS + 20


def test_a_long_text_with_few_values_is_no_large_body() -> None:
    """It is split in one step, and no thread is asked."""
    text = b'{"prompt":"' + b"x, y" * (MANY_COMMAS - 1) + b'"}'
    assert not is_large(text)
    assert not is_large(text[:-2] + b"z" * (LARGE_TEXT_BYTES - len(text)) + b'"}')
    assert is_large(text[:-2] + b"z" * (LARGE_TEXT_BYTES - len(text) + 1) + b'"}')


def test_many_escapes_make_a_long_text_a_large_body() -> None:
    """Each is looked at: half of a surrogate pair is refused."""
    text = b'{"prompt":"' + b"x" * LARGE_BODY_BYTES + b"\\u00e9" * MANY_ESCAPES
    assert not is_large(text + b'"}')
    assert is_large(text + b'\\u00e9"}')


def test_large_values_are_sent_from_where_they_lie() -> None:
    data = b'{"a":1,"prompt":"' + b"x" * 300_000 + b'","b":2}'
    sent = Body.of_outline(data, outline(data)).changed({"b": 3}).to_send()
    assert bytes(sent) == b'{"a":1,"prompt":"' + b"x" * 300_000 + b'","b":3}'
    assert not isinstance(sent, bytes)
    (large,) = [part for part in sent if isinstance(part, memoryview)]
    assert np.shares_memory(np.frombuffer(large, np.uint8), np.frombuffer(data, np.uint8))


def test_what_is_sent_of_a_long_value_is_no_copy() -> None:
    """A leg waits for its engine, as many of them as there are requests."""
    body = Body.parse(json.dumps({"model": "tiny", "prompt": "word " * 10_000}).encode())
    sent = body.changed({"max_tokens": 1}).to_send()
    assert isinstance(sent, Pieces)
    assert json.loads(bytes(sent)) == {"model": "tiny", "prompt": "word " * 10_000, "max_tokens": 1}
    lies_in = np.frombuffer(memoryview(body.view("prompt") or b""), np.uint8)
    assert any(np.shares_memory(lies_in, np.frombuffer(piece, np.uint8)) for piece in sent)


@given(
    st.lists(st.sampled_from([b"\\n", b"\\\\", b'\\"', b"u", b"x" * 97, "é".encode()]), max_size=200),
    st.integers(0, 200),
    st.integers(1, 40),
    st.booleans(),
)
def test_an_escape_of_a_character_is_found_wherever_it_stands(
    parts: list[bytes], at: int, times: int, there: bool
) -> None:
    text, rest = b"".join(parts[:at]) * times, b"".join(parts[at:]).replace(b"u", b"v")
    text = text.replace(b"u", b"v")
    data = text + (b"\\u" if there else b"\\n") + rest
    assert _names_characters(data) is there
    assert _names_characters(bytearray(data)) is there


@given(st.text(alphabet=',:"[]{}\\aé;', max_size=40), st.integers(0, 1 << 18))
def test_signs_are_counted_in_long_texts_as_in_short_ones(text: str, more: int) -> None:
    data = text.encode()
    short, long = signs_of(data), signs_of(data + b"x" * more + data)
    assert short is not None
    assert long is not None
    assert (2 * short.commas, 2 * short.openings) == (long.commas, long.openings)
    assert 2 * short.escapes == long.escapes
    assert long.members == min(2 * text.count(":"), text.count('"'))


@given(st.text(alphabet=',:"[{\\a', max_size=40))
def test_a_body_holds_no_more_than_its_signs_tell(text: str) -> None:
    body = {"prompt": [text, {text: [1, {}]}], text: 2}
    signs = signs_of(json.dumps(body).encode())
    assert signs is not None
    assert signs.members >= 3
    assert signs.openings >= 5
    assert signs.commas >= 3


_ODD = st.text(alphabet='ab"\\[]{},:', max_size=8)
_VALUES = st.recursive(
    _ODD | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_ODD, inner, max_size=4),
    max_leaves=20,
)


@given(_VALUES)
def test_nothing_of_texts_counts_for_depth_and_items(value: object) -> None:
    def depth(each: object) -> int:
        inner = list(each.values()) if isinstance(each, dict) else each
        return 1 + max(map(depth, inner), default=0) if isinstance(inner, list) else 0

    data = json.dumps(value).encode()
    assert _depth(data) == depth(value)
    if isinstance(value, (list, dict)) and value:
        assert _items(_without_texts(data)) == len(value)


def test_more_texts_than_a_small_body_has_make_it_a_large_one() -> None:
    """They would be looked at one by one."""
    assert not is_large(b'"' * 2 * MANY_TEXTS)
    assert is_large(b'"' * 2 * (MANY_TEXTS + 1))
