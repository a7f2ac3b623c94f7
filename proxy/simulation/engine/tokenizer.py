"""Invariant: decoding the tokens of a text gives the text back, byte for byte.

A byte-level BPE of 4096 tokens, small enough to run in plain Python and to ship with the package. It is
trained as the project's tiny test model's is, so a stand-in and that model split text alike.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from heapq import heappop, heappush
from importlib.resources import files

PAD, TURN, END = 0, 1, 2
SPECIAL = {"<|pad|>": PAD, "<|turn|>": TURN, "<|end|>": END}
_SPECIAL_SPLIT = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
# GPT-2's split into words, numbers, runs of marks and spaces, in character classes that `re` has.
_WORDS = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+",
)
_WORD_CACHE = 1 << 16


def alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself if printable, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in printable else next(spare)) for byte in range(256)}


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, merges: Iterable[tuple[str, str]]) -> None:
        self._char_of = alphabet()
        characters = sorted(self._char_of.values())
        self._pieces: list[str] = [*SPECIAL, *characters]
        self._rank: dict[tuple[str, str], int] = {}
        for pair in merges:
            self._rank[pair] = len(self._rank)
            self._pieces.append("".join(pair))
        byte_of = {character: byte for byte, character in self._char_of.items()}
        self._bytes = [
            piece.encode() if piece in SPECIAL else bytes(byte_of[c] for c in piece) for piece in self._pieces
        ]
        self._id_of = {piece: token for token, piece in enumerate(self._pieces)}
        self.longest_piece = max(map(len, self._pieces))
        """The characters of the longest token, as vLLM counts them."""
        self._encode_word = lru_cache(_WORD_CACHE)(self._merge)

    def __len__(self) -> int:
        """The size of the vocabulary."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text; the names of special tokens in it become those tokens."""
        tokens: list[int] = []
        for part in _SPECIAL_SPLIT.split(text):
            if part in SPECIAL:
                tokens.append(SPECIAL[part])
            else:
                for word in _WORDS.findall(part):
                    tokens.extend(self._encode_word(word))
        return tokens

    def decode(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of tokens. Unknown ids are left out; broken UTF-8 becomes replacement marks."""
        known = (t for t in tokens if 0 <= t < len(self._bytes) and not (skip_special and t <= END))
        return b"".join(self._bytes[t] for t in known).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token adds to a text; none for special and unknown tokens."""
        return self._bytes[token] if END < token < len(self._bytes) else b""

    def piece(self, token: int) -> str:
        """A token in the tokenizer's own alphabet, as `/tokenize` shows it."""
        return self._pieces[token]

    def words(self) -> list[int]:
        """Tokens that read well on their own: letters, with or without a space before them."""
        return [
            token
            for token, data in enumerate(self._bytes)
            if token > END and len(data) > 1 and data.strip().isalpha() and not data[1:].isspace()
        ]

    def _merge(self, word: str) -> tuple[int, ...]:
        """Join pairs of tokens, always the pair that was learned first, and of several the leftmost."""
        parts = [self._char_of[byte] for byte in word.encode("utf-8", "surrogatepass")]
        before = list(range(-1, len(parts) - 1))
        behind = list(range(1, len(parts) + 1))
        waiting: list[tuple[int, int, tuple[str, str]]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right < len(parts):
                pair = parts[left], parts[right]
                if (rank := self._rank.get(pair)) is not None:
                    heappush(waiting, (rank, left, pair))

        for place in range(len(parts)):
            consider(place, place + 1)
        while waiting:
            _, left, pair = heappop(waiting)
            right = behind[left]
            if right >= len(parts) or (parts[left], parts[right]) != pair:
                continue  # one of the two has been joined with another token meanwhile
            parts[left], parts[right] = "".join(pair), ""
            behind[left] = behind[right]
            if behind[right] < len(parts):
                before[behind[right]] = left
            consider(before[left], left)
            consider(left, behind[left])
        return tuple(self._id_of[part] for part in parts if part)


def load_tokenizer() -> Tokenizer:
    """The tokenizer that ships with the package."""
    lines = (files("proxy.simulation") / "data" / "merges.txt").read_text("utf-8").splitlines()
    return Tokenizer((left, right) for left, right in (line.split(" ") for line in lines))
