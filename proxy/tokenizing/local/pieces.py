"""The tokens of a text are those that its tokenizer gives, though only pieces that were not seen before are
tokenized.

Cuts are chosen from the left alone: the first safe place after every `CHUNK` characters of a part. A text
that grows at its end keeps all its earlier pieces, and so does a document that stands after the same special
token. Where little of a text is not known, that is cut once more, after every `FINE_CHUNK` characters, so
that a few new words cost no more than a few words.
"""

import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from proxy.tokenizing.local.exactness import Cuts
from proxy.tokenizing.local.names import pattern_of
from proxy.tokenizing.local.turns import SLICE_BYTES, Job, Slice, at_once
from proxy.tokenizing.shown import PiecesShown

CHUNK = 1024
"""The characters of a piece between words: about 250 tokens, 1 KiB each of text and of ids. With half of that
the same text costs more look-ups, with twice that more of a text that grew is tokenized again."""

FINE_CHUNK = 128
"""The characters of a fine piece: about 30 tokens, whose look-up costs a twentieth of tokenizing them."""

FINE_BYTES = 32 << 10
"""The most bytes of unknown pieces that are cut into fine ones. Of a long new text little would be found, and
it would take the place of what is."""

FINE_SHARE = 8
"""The part of the cache that fine pieces have: 1 / 8, some four million characters."""

CACHE_BYTES = 128 << 20
"""The bytes of the cache: about 60 million characters of distinct text, at some 2 bytes each, as an hour of
chats has."""

_ENTRY_BYTES = 250
"""The bytes of a dict entry with its key object and its value object, without their contents."""

MAX_PIECE_BYTES = 64 << 10
"""The largest piece, in UTF-8; texts with longer ones are left to engines.

While a piece is tokenized the library makes 90 to 230 bytes for each of its bytes (measured with tokenizers
0.22 and a byte-level vocabulary: letters 130, Chinese 135, digits 180, base64 210, Cyrillic 230), so 15 MB at
most, once. Prose, code and minified scripts of Latin letters have a place to cut every few KiB. A message of
Chinese or of Cyrillic letters, a table of numbers and base64 have none: 64 KiB of these are 21 000, 33 000
and 65 000 characters."""

LOOK_CHARACTERS = 1 << 14
"""The characters that are searched at once, before other threads have a turn: about 0.3 ms, however many
special tokens there are (the attack `nearly-special-tokens`)."""

_BETWEEN_WORDS = re.compile(r"[A-Za-z](?= [A-Za-z])")
_PLACE_CHARACTERS = 3

Encode = Callable[[Sequence[str]], "list[array[int]]"]
"""Returns the ids of each text, `array("I")`, without special tokens around them."""


class TooLongPieceError(ValueError):
    """A text has no place to cut for longer than a piece may be."""


class _Known:
    """Pieces and their ids, at most so many bytes of them: those used longest ago make room."""

    def __init__(self, max_bytes: int) -> None:
        self.ids: OrderedDict[str, array[int]] = OrderedDict()
        self.held_bytes = 0
        self._max_bytes = max_bytes

    def use(self, piece: str) -> "array[int] | None":
        """The ids of a piece, which is the last one used from now on; None if it is not known."""
        found = self.ids.get(piece)
        if found is not None:
            self.ids.move_to_end(piece)
        return found

    def put(self, piece: str, ids: "array[int]") -> None:
        size_bytes = _size_bytes(piece, ids)
        if piece in self.ids or size_bytes > self._max_bytes:
            return
        self.ids[piece] = ids
        self.held_bytes += size_bytes
        while self.held_bytes > self._max_bytes:
            self.held_bytes -= _size_bytes(*self.ids.popitem(last=False))


class PieceCache:
    """Encodes texts piece by piece; may be used from several threads at once."""

    def __init__(
        self,
        encode: Encode,
        cuts: Cuts,
        max_bytes: int = CACHE_BYTES,
        *,
        chunk: int = CHUNK,
        fine_chunk: int = FINE_CHUNK,
        max_piece_bytes: int = MAX_PIECE_BYTES,
        slice_bytes: int = SLICE_BYTES,
    ) -> None:
        """`encode`: called for pieces that are not known, in the thread that needs them. `max_bytes`: of the
        pieces that are kept. `chunk`, `fine_chunk`, `max_piece_bytes`, `slice_bytes`: as the constants of
        these names.
        """
        self._encode = encode
        self._max_piece_bytes = max_piece_bytes
        self.cuts = cuts
        self._chunk = chunk
        self._fine_chunk = fine_chunk
        self._slice_bytes = slice_bytes
        self._lock = threading.Lock()
        self._known = _Known(max_bytes - max_bytes // FINE_SHARE)
        self._fine = _Known(max_bytes // FINE_SHARE)
        self.hit_characters = 0
        """The characters of pieces that were known."""
        self.missed_characters = 0
        self._special = {text: array("I", [token]) for text, token in cuts.tokens.items()}
        self._longest_special = max(map(len, self._special), default=0)
        self._separator = pattern_of(list(self._special)) if self._special else None

    def status(self) -> PiecesShown:
        """For `/status`."""
        return PiecesShown(
            cut_at_special_tokens=bool(self.cuts.tokens),
            cut_between_words=self.cuts.words,
            held_bytes=self.held_bytes,
            hit_characters=self.hit_characters,
            missed_characters=self.missed_characters,
        )

    def __len__(self) -> int:
        """The number of pieces that are known, fine ones not counted."""
        return len(self._known.ids)

    @property
    def held_bytes(self) -> int:
        """The bytes of all pieces that are kept."""
        return self._known.held_bytes + self._fine.held_bytes

    def encode(self, text: str) -> "array[int]":
        """The token ids of a text, as the tokenizer gives them without special tokens around them; not to be
        changed, for those of one piece are also what is remembered of it.

        Raises TooLongPieceError.
        """
        return at_once(self.encoding(text))

    def encoding(self, text: str) -> "Job[array[int]]":
        """As `encode`, in slices of what is tokenized; it tells of the first when it knows which pieces those
        are.
        """
        parts = self._parts(text)
        out: list[array[int] | None] = []
        missing: dict[str, list[int]] = {}
        with self._lock:
            use = self._known.use
            for position, part in enumerate(parts):
                if isinstance(part, array):
                    out.append(part)
                    continue
                known = use(part)
                out.append(known)
                if known is None:
                    missing.setdefault(part, []).append(position)
                else:
                    self.hit_characters += len(part)
        if missing:
            new = self._all_of(missing) if self._is_long(missing) else self._new_of(missing)
            for piece, ids in (yield from new).items():
                for position in missing[piece]:
                    out[position] = ids
        return _packed([part for part in out if part is not None])

    def _is_long(self, missing: Iterable[str]) -> bool:
        return sum(map(_utf8_bytes, missing)) > FINE_BYTES

    def _all_of(self, missing: Mapping[str, Sequence[int]]) -> "Job[dict[str, array[int]]]":
        """The ids of all the pieces, which are tokenized as they are."""
        found: dict[str, array[int]] = {}
        left_bytes = sum(map(_utf8_bytes, missing))
        for pieces, size_bytes in batches(missing, self._slice_bytes):
            yield Slice(size_bytes, left_bytes)
            left_bytes -= size_bytes
            encoded = self._encode(pieces)
            with self._lock:
                for piece, ids in zip(pieces, encoded, strict=True):
                    found[piece] = ids
                    self.missed_characters += len(piece) * len(missing[piece])
                    self._known.put(piece, ids)
        return found

    def _new_of(self, missing: Mapping[str, Sequence[int]]) -> "Job[dict[str, array[int]]]":
        """The same, where of each piece only what is new in it is tokenized."""
        cut: dict[str, list[str]] = {piece: [] for piece in missing}
        known: dict[str, array[int]] = {}
        new: dict[str, None] = {}
        with self._lock:
            for piece, fine in cut.items():
                self._cut(piece, fine, self._fine_chunk)
                for part in fine:
                    ids = self._fine.use(part)
                    if ids is None:
                        new[part] = None
                    else:
                        known[part] = ids
        left_bytes = sum(map(_utf8_bytes, new))
        for pieces, size_bytes in batches(new, self._slice_bytes):
            yield Slice(size_bytes, left_bytes)
            left_bytes -= size_bytes
            known.update(zip(pieces, self._encode(pieces), strict=True))
        found = {piece: _packed([known[part] for part in fine]) for piece, fine in cut.items()}
        with self._lock:
            for part in new:
                self._fine.put(part, known[part])
            for piece, ids in found.items():
                self._known.put(piece, ids)
                times = len(missing[piece])
                missed = sum(len(part) for part in cut[piece] if part in new)
                self.missed_characters += missed * times
                self.hit_characters += (len(piece) - missed) * times
        return found

    def _parts(self, text: str) -> "list[str | array[int]]":
        """The pieces of a text in order; for special tokens, their ids."""
        if self._separator is None:
            parts: list[str | array[int]] = []
            self._cut(text, parts, self._chunk)
            return parts
        parts, start = [], 0
        for special in self._found(self._separator, text, self._longest_special):
            self._cut(text[start : special.start()], parts, self._chunk)
            parts.append(self._special[special.group()])
            start = special.end()
        self._cut(text[start:], parts, self._chunk)
        return parts

    @staticmethod
    def _found(pattern: re.Pattern[str], text: str, longest: int) -> Iterator[re.Match[str]]:
        """All matches, from left to right; none is longer than `longest`. Other threads have a turn after
        each search.
        """
        at = 0
        while at < len(text):
            look = at + LOOK_CHARACTERS
            match = pattern.search(text, at, look + longest)
            if match is not None and match.start() < look:
                yield match
                at = match.end()
            else:
                at = look

    def _cut(self, part: str, parts: "list[Any]", chunk: int) -> None:
        """Append the pieces of a part, each of a little more characters than `chunk`."""
        start, end = 0, len(part)
        while end - start > chunk:
            last = self._place_to_cut(part, start + chunk) if self.cuts.words else None
            if last is None:
                break
            parts.append(self._piece(part, start, last.end()))
            start = last.end() + self.cuts.drop_space
        if start < end:
            parts.append(self._piece(part, start, end))

    def _piece(self, part: str, start: int, end: int) -> str:
        if end - start <= self._max_piece_bytes:
            piece = part[start:end]
            if 4 * len(piece) <= self._max_piece_bytes or _utf8_bytes(piece) <= self._max_piece_bytes:
                return piece
        raise TooLongPieceError(f"a piece of more than {self._max_piece_bytes} bytes")

    def _place_to_cut(self, part: str, at: int) -> re.Match[str] | None:
        """The first place to cut from `at` on; None if the piece would be too long."""
        until = min(len(part), at + self._max_piece_bytes)
        while at < until:
            look = min(at + LOOK_CHARACTERS, until)
            if (
                last := _BETWEEN_WORDS.search(part, at, min(len(part), look + _PLACE_CHARACTERS))
            ) is not None:
                return last
            at = look
        return None


def batches(texts: Iterable[str], slice_bytes: int) -> Iterator[tuple[list[str], int]]:
    """The texts in order, in batches of a slice each, with the bytes of each batch."""
    batch: list[str] = []
    size_bytes = 0
    for text in texts:
        more_bytes = _utf8_bytes(text)
        if batch and size_bytes + more_bytes > slice_bytes:
            yield batch, size_bytes
            batch, size_bytes = [], 0
        batch.append(text)
        size_bytes += more_bytes
    if batch:
        yield batch, size_bytes


def _packed(ids: "list[array[int]]") -> "array[int]":
    if len(ids) == 1:
        return ids[0]
    packed = array("I")
    packed.frombytes(b"".join(ids))
    return packed


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _size_bytes(piece: str, ids: "array[int]") -> int:
    width = 1 if piece.isascii() else 4  # Python stores the widest character's width for all; 4 is the most
    return width * len(piece) + ids.itemsize * len(ids) + _ENTRY_BYTES
