"""A large body is taken exactly if a decoder takes all of it at once, and none is given more than a few
slices."""

import json
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadRequestError
from proxy.request import body as body_module
from proxy.request import generation, grammar, json_pieces, outline
from proxy.request.body import Body
from proxy.request.dialects import DIALECTS
from proxy.request.generation import read_request
from proxy.request.json_pieces import COPIED_BYTES, PIECE_BYTES, contains, decoded_text
from proxy.tokenizing import contents, fields
from proxy.tokenizing.fields import Ask, Given, what_to_tokenize
from proxy.tokenizing.local import bounds, tokenizer
from proxy.tokenizing.local.reading import loads
from proxy.upstream.engine_api import tokens
from proxy.upstream.engine_api.asking import UnreadableError

MODULES = (body_module, generation, grammar, json_pieces, tokens, contents, fields, tokenizer)

TEXTS = st.text(st.sampled_from('ab"\\,:[]{}é漢😀 \n'), max_size=9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99999) | st.floats(-2, 2) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, min_size=1, max_size=5)
SMALL = st.sampled_from([1, 2, 3, 7, 64])


@pytest.fixture
def most_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what decoders are given from now on."""
    sizes: list[int] = []

    def counted(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counting(data: Any) -> Any:
            sizes.append(memoryview(data).nbytes)
            return decode(data)

        return counting

    for module in MODULES:
        for name in [name for name in vars(module) if name.startswith("_decode")]:
            monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return sizes


def outlined(data: bytes, slice_bytes: int, long_bytes: int) -> Body:
    found = outline.outline(data, slice_bytes=slice_bytes, long_text_bytes=long_bytes)
    return Body.of_outline(data, found)


@given(OBJECTS, SMALL, SMALL, st.booleans(), st.sampled_from([None, 1]), st.data())
@settings(max_examples=400, deadline=None)
def test_the_grammar_takes_what_a_decoder_takes(
    members: dict[str, Any],
    slice_bytes: int,
    long_bytes: int,
    ascii_only: bool,
    indent: int | None,
    draw: st.DataObject,
) -> None:
    data = bytearray(json.dumps(members, ensure_ascii=ascii_only, indent=indent).encode())
    for _ in range(draw.draw(st.integers(0, 2))):
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at : at + draw.draw(st.integers(0, 2))] = draw.draw(
            st.sampled_from([b"", b",", b"[", b"]", b"{", b"}", b'"', b":", b"1", b" ", b"\\", b"-"])
        )
    text = bytes(data)
    try:
        right = Body.parse(text)
    except BadRequestError:
        with pytest.raises(BadRequestError):
            outlined(text, slice_bytes, long_bytes)
        return
    if not right.names():
        return
    found = outlined(text, slice_bytes, long_bytes)
    assert {name: found.raw(name) for name in found.names()} == {
        name: right.raw(name) for name in right.names()
    }


@given(OBJECTS, SMALL, SMALL, st.booleans())
@settings(max_examples=200, deadline=None)
def test_long_texts_are_left_out_and_put_back(
    members: dict[str, Any], slice_bytes: int, long_bytes: int, ascii_only: bool
) -> None:
    data = json.dumps(members, ensure_ascii=ascii_only).encode()
    body = outlined(data, slice_bytes, long_bytes)
    for name, value in members.items():
        assert json.loads(bytes(body.whole(body.short(name)))) == value
        assert body.whole_bytes(body.short(name)) == len(body.raw(name) or b"")
        if isinstance(value, list):
            items = list(body.short_items(name))
            assert [json.loads(bytes(body.whole(item))) for item in items] == value
            assert [json.loads(bytes(item)) for item in body.raw_items(name)] == value


@given(TEXTS, st.integers(1, 12), st.booleans())
def test_a_text_is_decoded_in_parts_as_at_once(text: str, piece_bytes: int, ascii_only: bool) -> None:
    data = memoryview(json.dumps(text, ensure_ascii=ascii_only).encode())
    assert decoded_text(data, piece_bytes + 11) == text  # an escaped pair has twelve


@pytest.mark.parametrize("value", [["a" * 400_000, {"b": ["é" * 5000, 1, "c"]}], {"x" * 9000: "ü" * 300_000}])
def test_values_are_read_as_python_reads_them(value: Any) -> None:
    assert loads(json.dumps(value).encode()) == value
    assert loads(json.dumps(value, ensure_ascii=False).encode()) == value


def test_pythons_decoder_is_given_little_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text, sizes = json.dumps([{"content": "word " * 800_000}] * 2).encode(), []
    decode = json.loads

    def counting(data: bytes) -> Any:
        sizes.append(len(data))
        return decode(data)

    monkeypatch.setattr(json, "loads", counting)
    assert loads(text)[1]["content"].endswith("word ")
    assert max(sizes) < 200


IMAGE = "data:image/png;base64," + "iVBO" * 1_500_000


def _chat(*contents: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


BODIES = {
    "image": _chat([{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "What?"}]),
    "long message": _chat("word " * 800_000, "short"),
    "many messages": _chat(*["word " * 200] * 4000),
    "long text": {"prompt": "wörd " * 800_000},
    "list of texts": {"prompt": ["word " * 700_000, "word " * 700_000]},
    "one text in a list": {"prompt": ["word " * 700_000]},
    "token ids": {"prompt": [17] * 900_000},
    "list of ids": {"prompt": [[17] * 500_000, [18] * 500_000]},
    "tools": _chat("Hi") | {"tools": [{"type": "function", "function": {"name": "n" * 3_000_000}}]},
    "unknown": {"prompt": "Hi", "x": {"y": ["z" * 2_000_000, {"a": "b" * 2_000_000}]}},
    "many texts": {"prompt": "Hi", "x": ["z" * 1000] * 4000},
    "white space": {"prompt": "Hi", "x": [1]},
}


@pytest.mark.parametrize("kind", BODIES)
def test_nothing_is_decoded_in_proportion_to_a_body(kind: str, most_decoded: list[int]) -> None:
    data = json.dumps(BODIES[kind]).encode()
    if kind == "white space":
        data = data.replace(b"[", b"[" + b" " * 3_000_000).replace(b"}", b" " * 3_000_000 + b"}")
    request = read_request(DIALECTS, data, "tiny", outline.outline(data))
    how = what_to_tokenize(request, bounds.Bounds(longest=1_000_000))
    sent = json.loads(bytes(request.body.to_send()))
    assert sent == json.loads(data)
    assert max(most_decoded[:-2]) <= grammar.MAX_PIECE_BYTES, "the test itself decodes the last two"
    if isinstance(how, Ask):
        assert len(how.body) < 8_100_000
    assert isinstance(how, Ask | Given) or kind in {
        "list of texts",
        "list of ids",
        "tools",
        "unknown",
        "many texts",
    }


@given(
    st.sampled_from([b'_url"', b'"a', b'""', b"\\u"]),
    st.lists(
        st.sampled_from([b'_url"', b'_urx"', b"_", b'"', b"a", b"\\", b"u", b"\\n" * 70, b'"' * 66]),
        max_size=9,
    ),
    st.integers(-9, 9),
    st.integers(0, 3),
    st.sampled_from([b"x", b'_ur["', b"ac"]),
)
def test_words_are_found_in_long_texts_as_in_short_ones(
    words: bytes, parts: list[bytes], around: int, pieces: int, filler: bytes
) -> None:
    before = (filler * (512 << 10))[: pieces * (128 << 10) + around] if pieces else b""
    data = before + b"".join(parts) + (b"" if pieces else b"x" * (10 << 10))
    assert contains(data, words) is (words in data)
    assert contains(memoryview(bytearray(data)), words) is (words in data)


def test_what_is_copied_at_once_is_bounded() -> None:
    assert max(map(len, json_pieces.slices(bytes(5 * COPIED_BYTES)))) == COPIED_BYTES


@pytest.mark.parametrize(
    "value",
    [b"1" * 3_000_000, b"[" + b"1" * 3_000_000 + b"]", b'"a" ' * 700_000, b"x" * 3_000_000],
    ids=["digits", "digits in a list", "texts without commas", "letters"],
)
def test_what_no_comma_parts_is_refused(value: bytes, most_decoded: list[int]) -> None:
    data = b'{"prompt":' + value + b"}"
    with pytest.raises(BadRequestError):
        outline.outline(data)
    assert max(most_decoded, default=0) <= grammar.MAX_PIECE_BYTES


@pytest.mark.parametrize("count", [10, 1_000_000])
def test_an_engines_tokens_are_read_in_parts(count: int, most_decoded: list[int]) -> None:
    answer = json.dumps({"count": count, "tokens": [151643] * count, "token_strs": None}).encode()
    assert tokens.read_tokens(answer) == array("I", [151643]) * count
    assert max(most_decoded) <= 2 * PIECE_BYTES
    for odd in (b'{"tokens":"x"}', b'{"tokens":[-1]}', b'{"tokens":["1"]}', b"[]", b'{"count":1}'):
        with pytest.raises(UnreadableError):
            tokens.read_tokens(odd + b" " * count)


@pytest.mark.parametrize("slice_bytes", range(1, 12))
@pytest.mark.parametrize(
    "value",
    [b"[,1]", b"[1,]", b"[1,,2]", b'{,"b":1}', b'{"b":1,}', b'{"b":1,,"c":2}', b"[[1},2]", b'[{"b":1],2]'],
)
def test_a_comma_parts_two_values_wherever_a_slice_ends(value: bytes, slice_bytes: int) -> None:
    with pytest.raises(BadRequestError):
        outlined(b'{"a":' + value + b"}", slice_bytes, 64)
