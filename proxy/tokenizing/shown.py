"""What `/status` shows of where prompts' tokens come from."""

import enum
from typing import Annotated

from proxy.shown import Count, Shown, says


class TokenPath(enum.StrEnum):
    """What turns prompts into tokens."""

    LOCAL = "local"
    """The tokenizer in this process, which agrees with the engines."""
    ENGINES = "engines"
    """An engine's `/tokenize`."""


class AnswersShown(Shown, frozen=True, kw_only=True):
    """The answers of engines to `/tokenize` that are remembered, 16 MiB at most."""

    held_bytes: Count


class PiecesShown(Shown, frozen=True, kw_only=True):
    """The cache of tokenized pieces."""

    cut_at_special_tokens: bool
    cut_between_words: bool
    held_bytes: Count
    hit_characters: Annotated[Count, says("Characters whose tokens were found there.")]
    missed_characters: Annotated[Count, says("Characters that had to be tokenized.")]


class TokenizerShown(Shown, frozen=True, kw_only=True):
    """Where prompts' tokens come from."""

    schemas: Annotated[
        list[str],
        says(
            "The versions of engines whose request schema was read; that is done once a request has a member"
            " that is not known here."
        ),
    ]
    answers: AnswersShown
    path: TokenPath
    directory: Annotated[str | None, says("Of the tokenizer that is loaded here.")]
    checked_with: Annotated[list[str], says("The instances whose `/tokenize` it was compared with.")]
    off: Annotated[
        dict[str, str],
        says("Kinds of prompts that engines are asked about, and an instance that renders them otherwise."),
    ]
    pieces: Annotated[
        PiecesShown | None, says("The cache of tokenized pieces; null without a tokenizer here.")
    ]
