"""A prompt that no context can hold is refused by its size, before it is read: a token has only so many
characters.

vLLM refuses a text of more characters than its context has tokens times the characters of its vocabulary's
longest token, before it tokenizes it (`TokenizeParams._text_len_check` in 0.32). So does kvproxy, by the same
count, before it renders, tokenizes or asks; an engine would refuse the same. A text below that which is most
unlikely to fit is left to engines: it is not tokenized to be placed.
"""

import math
from typing import NamedTuple

import numpy as np

from proxy.request.outline import SLICE_BYTES

UNKNOWN_CHARACTERS_A_TOKEN = 512
"""The characters of the longest token if the vocabulary is not known: four times the 128 spaces that are the
longest token of GPT-4, Llama 3, Qwen and DeepSeek."""

WORK_BYTES_A_TOKEN = 32
"""The bytes of JSON text that a token has at most. English has 4 bytes a token, the worst ordinary text 18:
Thai, escaped, with three characters a token."""
MIN_WORK_BYTES = 256 << 10
MAX_WORK_BYTES = 8 << 20
"""The most JSON text that is read: two million tokens of English. A decoder needs 25 ms for it, and no other
thread runs meanwhile."""

MAX_WORK_VALUES = 100_000
"""The most values of messages, tools and the like that are read for a template."""


MAX_IDS = 1 << 22
"""The most token ids of one prompt, however it is to be shortened; longer contexts may have `IDS_A_TOKEN` for
each token.

vLLM 0.32 reads a request in the loop that answers health checks: 30 million ids take it 3 s, so a few at once
look like a frozen engine."""
IDS_A_TOKEN = 4


class Limits(NamedTuple):
    """How much of a prompt is read; the constants of this module say why."""

    work_bytes_a_token: int = WORK_BYTES_A_TOKEN
    least_work_bytes: int = MIN_WORK_BYTES
    max_work_bytes: int = MAX_WORK_BYTES
    max_work_values: int = MAX_WORK_VALUES
    max_ids: int = MAX_IDS


LIMITS = Limits()


class Excess(NamedTuple):
    """By how much a prompt is longer than any context."""

    context_tokens: int
    """The tokens of the longest context."""
    tokens: int | None
    """The tokens of the prompt, if known."""
    characters: int = 0
    """The characters that it has at least, if its tokens are not known."""
    characters_a_token: int = 0
    max_ids: int | None = None
    """The most token ids that are taken, if there are too many ids to be shortened."""


class Bounds(NamedTuple):
    """How long prompts may be."""

    longest: float = math.inf
    """The tokens of the longest context of any instance, as far as they are known."""
    sure: float = math.inf
    """The same if it is known of every instance; a longer prompt fits nowhere."""
    characters_a_token: int = UNKNOWN_CHARACTERS_A_TOKEN
    limits: Limits = LIMITS

    @property
    def work_bytes(self) -> float:
        """The most bytes of JSON text that are read."""
        limits = self.limits
        wanted = max(self.longest * limits.work_bytes_a_token, limits.least_work_bytes)
        return min(wanted, limits.max_work_bytes)

    @property
    def max_characters(self) -> float:
        """The most characters; a text with more fits nowhere."""
        return self.sure * self.characters_a_token

    def of_tokens(self, tokens: int) -> Excess | None:
        """By how much a prompt of that many tokens is too long; None if it is not."""
        return Excess(int(self.sure), tokens) if tokens > self.sure else None

    def of_ids(self, count: int) -> Excess | None:
        """By how much that many token ids, which an engine would shorten or judge, are too many; None if they
        are not.
        """
        known = self.longest < math.inf
        most = self.limits.max_ids
        if known:
            most = max(most, IDS_A_TOKEN * int(self.longest))
        return Excess(int(self.longest) if known else 0, count, max_ids=most) if count > most else None

    def of_characters(self, characters: int) -> Excess | None:
        """By how much a text of at least that many characters is too long; None if it is not."""
        if characters <= self.max_characters:
            return None
        return Excess(int(self.sure), None, characters, self.characters_a_token)


_OF_WIDE_BLANKS = (0xC2, 0xE1, 0xE2, 0xE3)
"""The first bytes of Unicode's white space beyond ASCII, and of other characters."""


def least_characters(json_text: memoryview, *, blanks: bool) -> int:
    """The fewest characters that a JSON text can decode to, however it is escaped.

    `blanks`: whether white space counts; templates may strip it.
    """
    found = 0
    array = np.frombuffer(json_text, np.uint8)
    lowest = ord(" ") if blanks else ord(" ") + 1
    for start in range(0, len(array), SLICE_BYTES):
        part = array[start : start + SLICE_BYTES]
        # A continuation byte of UTF-8 is no character, and an escaped character has six bytes at most.
        counted = (part >= lowest) & ((part & 0xC0) != 0x80)
        if not blanks:
            for first in _OF_WIDE_BLANKS:
                counted &= part != first
        found += int(np.count_nonzero(counted))
        found -= 6 * int(np.count_nonzero(part == ord("\\")))
    return max(0, found - 2)
