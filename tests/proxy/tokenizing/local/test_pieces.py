"""Tokens of pieces are the tokens of the whole, for every kind of tokenizer; where that is not proven,
nothing is cut."""

import functools
import json
from array import array
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from proxy.tokenizing.local import pieces
from proxy.tokenizing.local.exactness import Cuts, cuts_of
from proxy.tokenizing.local.pieces import PieceCache
from tests.helpers import toy_tokenizers as toys

NOWHERE, SPECIAL, WORDS = "nowhere", "at special tokens", "between words, too"

MAKERS: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "GPT-2": (lambda: toys.byte_level(None), WORDS),
    "Llama 3": (lambda: toys.byte_level(toys.LLAMA_3, ignore_merges=True), WORDS),
    "Qwen": (lambda: toys.byte_level(toys.LLAMA_3.replace("{1,3}", ""), normalizers.NFC()), WORDS),
    "o200k": (lambda: toys.byte_level(toys.O200K), WORDS),
    "DeepSeek": (lambda: toys.byte_level(toys.DEEPSEEK), WORDS),
    "Llama 2": (lambda: toys.sentencepiece_like(prepend=True), WORDS),
    "Gemma": (
        lambda: toys.sentencepiece_like(
            prepend=False, pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous", invert=False)
        ),
        WORDS,
    ),
    "Metaspace at every part": (lambda: toys.unigram("always"), SPECIAL),
    "Metaspace at the first part": (lambda: toys.unigram("first"), NOWHERE),
    "WordPiece": (toys.word_piece, SPECIAL),
    "a pattern nobody looked at": (lambda: toys.byte_level(r"\w+ \w+|\s+|."), SPECIAL),
    "a pattern that looks back": (lambda: toys.byte_level(r"\p{L}+|(?<=a) b|\s+"), SPECIAL),
    "a token of two words": (
        lambda: toys.with_added(toys.byte_level(None), AddedToken("a b", normalized=False)),
        SPECIAL,
    ),
    "a token that takes the space behind it": (
        lambda: toys.with_added(toys.byte_level(None), AddedToken("ma", rstrip=True, normalized=False)),
        SPECIAL,
    ),
    "a token that is a word": (
        lambda: toys.with_added(toys.byte_level(None), AddedToken("b", single_word=True, normalized=False)),
        NOWHERE,
    ),
    "a token that runs into a special one": (
        lambda: toys.with_added(toys.byte_level(None), AddedToken("a<|e", normalized=False)),
        WORDS.replace("between words, too", "between words alone"),
    ),
    "a token that takes spaces": (
        lambda: toys.with_added(
            toys.byte_level(None), AddedToken("<m>", lstrip=True, rstrip=True, special=True)
        ),
        WORDS,
    ),
    "a first letter behind a lost space": (
        lambda: toys.with_added(toys.sentencepiece_like(prepend=True), AddedToken("b", normalized=False)),
        SPECIAL,
    ),
}


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    return MAKERS[name][0]()


def plain(tok: Tokenizer, text: str) -> list[int]:
    return list(tok.encode(text, add_special_tokens=False).ids)


def cached(
    tok: Tokenizer,
    cuts: Cuts,
    max_bytes: int = 1 << 20,
    *,
    chunk: int = pieces.CHUNK,
    fine_chunk: int = pieces.FINE_CHUNK,
) -> PieceCache:
    def encode(texts: Sequence[str]) -> "list[array[int]]":
        found = tok.encode_batch_fast(list(texts), add_special_tokens=False)
        return [array("I", one.ids) for one in found]

    return PieceCache(encode, cuts, max_bytes, chunk=chunk, fine_chunk=fine_chunk)


@pytest.mark.parametrize("name", MAKERS)
def test_a_tokenizer_is_cut_where_that_is_proven_and_nowhere_else(name: str) -> None:
    cuts = cuts_of(tokenizer(name).to_str())
    where = WORDS if cuts.words and cuts.tokens else SPECIAL if cuts.tokens else NOWHERE
    where = "between words alone" if cuts.words and not cuts.tokens else where
    assert where == MAKERS[name][1]


ALPHABETS = st.sampled_from(
    [
        "a", "b", "ab", "mask", "ma", "Ab", "x", " ", " ", " ", "  ", "\n", "\r\n", "\t", ".", "'s", "'", "1",
        "23", "▁", "-",
        "é", "e\u0301", "\u0301", "漢", "ß", "ﬁ", "👩‍👩‍👧", "\u200b", "\u00a0", "<m>", "<|end|>", "<|turn|>",
        "<|begin|>",
        "<|en", "d|>a", "a<|e", "function returns the value", " of the module", "İ", "Σ", "½", "ก็",
        "\U0001d4b3", "\u2028", "<0x0A>", "<unk>",
    ]
)  # fmt: skip
TEXTS = st.lists(ALPHABETS, max_size=60).map("".join) | st.text(max_size=40)


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_of_pieces_are_the_tokens_of_the_whole(name: str) -> None:
    tok = tokenizer(name)
    cuts = cuts_of(tok.to_str())
    # So that short texts are cut, too, and what is cut once more.
    caches = [cached(tok, cuts, 40_000, chunk=2 * n, fine_chunk=n) for n in range(7)]

    @settings(max_examples=150, deadline=None, database=None)
    @given(TEXTS, st.integers(0, 6))
    def check(text: str, chunk: int) -> None:
        assert caches[chunk].encode(text).tolist() == plain(tok, text)

    check()
    assert max(cache.held_bytes for cache in caches) <= 40_000


@pytest.mark.parametrize(
    "name", ["a token of two words", "a first letter behind a lost space", "Metaspace at the first part"]
)
def test_cutting_there_all_the_same_would_show(name: str) -> None:
    """That these are not cut is no excess of care."""
    tok = tokenizer(name)
    added = json.loads(tok.to_str())["added_tokens"]
    special = {token["content"]: token["id"] for token in added if token["special"]}
    cache = cached(tok, Cuts(special, words=True, drop_space="lost" in name), chunk=0)
    texts = ("<|end|>b<|end|>", "a b", "ma b", "x<|end|>b a b x")
    assert any(cache.encode(text).tolist() != plain(tok, text) for text in texts)


def long_text(words: int) -> str:
    return " ".join(f"value {n} of the function" for n in range(words))


def test_a_text_that_grew_at_its_end_is_tokenized_there_alone() -> None:
    tok = tokenizer("Llama 3")
    cache = cached(tok, cuts_of(tok.to_str()))
    text = ""
    for turn in range(20):
        text += f"<|turn|>user\n{long_text(200)} {turn}<|end|>\n<|turn|>assistant\n"
        before = cache.missed_characters
        assert cache.encode(text).tolist() == plain(tok, text)
        if turn:
            assert cache.missed_characters - before < 2 * pieces.CHUNK
    document = long_text(2000)
    cache.encode(f"<|turn|>{document} what is it?<|end|>")
    before = cache.missed_characters
    cache.encode(f"<|turn|>{document} and what is that?<|end|>")
    assert cache.missed_characters - before < 3 * pieces.CHUNK


def test_of_a_piece_that_changed_a_little_only_that_is_tokenized() -> None:
    tok = tokenizer("Llama 3")
    cache = cached(tok, cuts_of(tok.to_str()))
    before, behind = (" ".join(["a return", "of value"] * 20 + [word] * 20) for word in ("left", "right"))
    for number in range(100, 120):
        missed, hit = cache.missed_characters, cache.hit_characters
        text = f"{before} number {number} {behind}"
        assert cache.encode(text).tolist() == plain(tok, text)
        assert cache.missed_characters - missed + cache.hit_characters - hit == len(text)
        if number > 100:
            assert cache.missed_characters - missed < 2 * pieces.FINE_CHUNK


def test_a_long_new_text_takes_no_place_from_fine_pieces() -> None:
    tok = tokenizer("Llama 3")
    cache = cached(tok, cuts_of(tok.to_str()))
    text = long_text(2 * pieces.FINE_BYTES // len("value 1000 of the function "))
    cache.encode(text)
    held_bytes = cache.held_bytes
    cache.encode("a few more words")
    assert cache.held_bytes - held_bytes < 2000
    assert len(text) > pieces.FINE_BYTES
    assert held_bytes < 4 * len(text)


def test_memory_is_bounded_and_what_was_used_last_stays() -> None:
    tok = tokenizer("GPT-2")
    cache = cached(tok, cuts_of(tok.to_str()), max_bytes=20_000)
    for n in range(200):
        cache.encode("<|turn|>kept<|end|>" + "x" * 100 + str(n))
        assert cache.held_bytes <= 20_000
    before = cache.missed_characters
    cache.encode("kept")
    assert cache.missed_characters == before
    assert 10 < len(cache) < 100


def test_ids_are_packed() -> None:
    tok = tokenizer("GPT-2")
    ids = cached(tok, cuts_of(tok.to_str())).encode("a module")
    assert isinstance(ids, array)
    assert (ids.typecode, ids.itemsize) == ("I", 4)


@pytest.mark.parametrize(
    ("text", "longest"),
    [("a", 300), ("я", 150), ("漢", 100), ("👩", 75)],  # a letter of one, two, three, four bytes
)
def test_a_piece_is_as_long_as_its_bytes(text: str, longest: int) -> None:
    tokenizer = toys.byte_level(None)

    def encode(texts: Sequence[str]) -> "list[array[int]]":
        return [array("I", tokenizer.encode(text).ids) for text in texts]

    cache = PieceCache(encode, cuts_of(tokenizer.to_str()), max_piece_bytes=300)
    assert cache.encode(text * longest).tolist() == tokenizer.encode(text * longest).ids
    with pytest.raises(pieces.TooLongPieceError):
        cache.encode(text * (longest + 1))
