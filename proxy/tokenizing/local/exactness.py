"""Where a text may be cut so that the tokens of its pieces are the tokens of the whole: only where that is
proven.

The places are added tokens, and `letter | space letter` within a part;
docs/adr/0006-where-a-text-may-be-cut.md has the proof.
"""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

UNDERLINE = "▁"

_LETTERS = frozenset(
    {
        r"\p{L}+",
        r" ?\p{L}+",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    }
)
_UPPER_AND_LOWER = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
"""Together they match any letter; OpenAI's newer patterns have both, each with contractions or without."""
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = frozenset({r"\s+"})
_ALTERNATIVES = (
    _LETTERS
    | _SPACES
    | {words + ending for words in _UPPER_AND_LOWER for ending in ("", f"{_CONTRACTIONS}?")}
    | {_CONTRACTIONS, *_CONTRACTIONS[4:-1].split("|")}
    | {
        r"\p{N}",
        r"\p{N}+",
        r" ?\p{N}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
        r"[一-龥぀-ゟ゠-ヿ]+",  # noqa: RUF001  # as in the models' files
        r"\s*[\r\n]",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
    }
)
_LOCAL_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"})
_LOCAL_SPLITTERS = frozenset({"Digits", "Punctuation"})


class Cuts(msgspec.Struct, frozen=True):
    """The places where texts may be cut for one tokenizer."""

    tokens: dict[str, int] = {}
    """The added tokens to cut at, and their ids."""
    words: bool = False
    """Whether a part may be cut between a letter and a space with a letter behind it."""
    drop_space: bool = False
    """Whether the second piece of such a cut is given to the tokenizer without its space."""


def cuts_of(tokenizer_json: str) -> Cuts:
    """Where texts may be cut, from the tokenizer's own description (`tokenizer.json`)."""
    made_of: dict[str, Any] = json.loads(tokenizer_json)
    added = made_of.get("added_tokens") or []
    steps = _flat(made_of.get("pre_tokenizer"), "pretokenizers")
    if any(step["type"] == "Metaspace" and step.get("prepend_scheme") == "first" for step in steps):
        return Cuts()  # the first part of a text is treated differently
    normalizers = _flat(made_of.get("normalizer"), "normalizers")
    always, drop_space = _always_splits(steps, normalizers), False
    if not always:
        always, drop_space = _never_joins(made_of.get("model") or {}, steps, normalizers)
    words = always and not any(_may_cross(token, drop_space=drop_space) for token in added)
    return Cuts(_separators(added), words, drop_space and words)


def _flat(step: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [inner for each in step[members] for inner in _flat(each, members)]


def _separators(added: list[dict[str, Any]]) -> dict[str, int]:
    """The special tokens at which texts are split, whatever stands beside them."""
    first = [token for token in added if not token["normalized"]]
    if any(token["single_word"] for token in first):
        return {}
    chosen = {
        token["content"]: token["id"]
        for token in first
        if token["special"]
        and not token["lstrip"]
        and not token["rstrip"]
        and token["content"] == token["content"].strip() != ""
    }
    others = [token["content"] for token in first if token["content"] not in chosen]
    if any(_takes_from(other, one) for one in chosen for other in others):
        return {}
    return chosen


def _takes_from(other: str, one: str) -> bool:
    """Whether an occurrence of `other` could hide one of `one`: the leftmost and longest is found."""
    return one in other or any(other[-n:] == one[:n] for n in range(1, min(len(one), len(other))))


def _may_cross(token: dict[str, Any], *, drop_space: bool) -> bool:
    """Whether an added token could be found across a cut between words, or found differently beside one."""
    if drop_space and re.match(rf"[ {UNDERLINE}]?[A-Za-z]", token["content"]):
        return True
    ends_with_letter = re.search(r"[A-Za-z]$", token["content"]) is not None
    crosses = re.search(rf"[A-Za-z][ {UNDERLINE}]", token["content"]) is not None
    return bool(crosses or token["single_word"] or (token["rstrip"] and ends_with_letter))


def _always_splits(steps: list[dict[str, Any]], normalizers: list[dict[str, Any]]) -> bool:
    if any(step["type"] not in _LOCAL_NORMALIZERS for step in normalizers):
        return False
    for step in steps:
        if step["type"] == "ByteLevel" and step.get("use_regex", True):
            return True  # GPT-2's pattern, whose alternatives are all above
        if step["type"] in _LOCAL_SPLITTERS:
            continue
        if step["type"] != "Split" or not _keeps_matches(step):
            return False
        alternatives = _alternatives(step["pattern"].get("Regex", ""))
        if not alternatives <= _ALTERNATIVES:
            return False
        if alternatives & _SPACES and _takes_letters(alternatives):
            return True
    return False


def _keeps_matches(split: dict[str, Any]) -> bool:
    return (split["behavior"], split["invert"]) in {("Isolated", False), ("Removed", True)}


def _takes_letters(alternatives: frozenset[str]) -> bool:
    cased = (
        words in alternatives or f"{words}{_CONTRACTIONS}?" in alternatives for words in _UPPER_AND_LOWER
    )
    return bool(alternatives & _LETTERS) or all(cased)


def _alternatives(pattern: str) -> frozenset[str]:
    """The alternatives of a regular expression at its top level."""
    return frozenset(_top_level(pattern))


def _top_level(pattern: str) -> Iterator[str]:
    start = depth = 0
    in_class = escaped = False
    for position, char in enumerate(pattern):
        if escaped or char == "\\":
            escaped = not escaped
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            yield pattern[start:position]
            start = position + 1
    yield pattern[start:]


def _never_joins(
    model: dict[str, Any], steps: list[dict[str, Any]], normalizers: list[dict[str, Any]]
) -> tuple[bool, bool]:
    """Whether no token crosses a cut, and whether each part gets a "▁" in front."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": UNDERLINE}
    prepend = {"type": "Prepend", "prepend": UNDERLINE}
    if normalizers not in ([replace], [prepend, replace]):
        return False, False
    # If no spaces are left, a split at spaces does nothing.
    if any(step["type"] != "Split" or step["pattern"] != {"String": " "} for step in steps):
        return False, False
    # With `ignore_merges` a short piece may be a token that no merges make.
    others = ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "ignore_merges")
    if model.get("type") != "BPE" or any(model.get(name) for name in others):
        return False, False
    vocabulary = model.get("vocab") or {}
    letters = itertools.chain(
        map(chr, range(ord("A"), ord("Z") + 1)), map(chr, range(ord("a"), ord("z") + 1))
    )
    if not all(character in vocabulary for character in (UNDERLINE, *letters)):
        return False, False  # characters that are not in the vocabulary are joined with their neighbours
    behind_a_letter = re.compile(f"[A-Za-z]{UNDERLINE}").search
    return not any(map(behind_a_letter, vocabulary)), len(normalizers) == 2
