"""What no context can hold is known by its size, before it is read: a token covers only so many characters.

vLLM refuses a text of more characters than its context has tokens times the characters of its vocabulary's
longest token, before it tokenizes it (`TokenizeParams._text_len_check` in 0.32). So does kvproxy, by the same
count, before it renders, tokenizes or asks; what it refuses an engine would. What is below that and still
most unlikely to fit is left to engines: it is not tokenized to be placed.
"""

import math
from typing import NamedTuple

import numpy as np

from proxy.request.outline import SLICE_BYTES

UNKNOWN_CHARACTERS_A_TOKEN = 512
"""Where the vocabulary is not known: four times the longest token of those of GPT-4, Llama 3, Qwen and
DeepSeek, which is 128 spaces."""

WORK_BYTES_A_TOKEN = 32
"""Of JSON text. English has 4 bytes a token, the worst ordinary text 18: Thai, escaped, with three characters
a token."""
MIN_WORK_BYTES = 256 << 10
MAX_WORK_BYTES = 8 << 20
"""Two million tokens of English; a decoder needs 25 ms for it, and no other thread runs meanwhile."""

MAX_WORK_VALUES = 100_000
"""Of messages, tools and the like, to be read for a template."""


MAX_IDS = 1 << 22
"""Token ids of one prompt, however it is to be shortened; longer contexts may have `IDS_A_TOKEN` for each
token. vLLM 0.32 reads a request in the loop that answers health checks: 30 million ids take it 3 s, so a few
at once look like a frozen engine."""
IDS_A_TOKEN = 4


class Limits(NamedTuple):
    """How much is read of any prompt; the constants of this module tell why."""

    work_bytes_a_token: int = WORK_BYTES_A_TOKEN
    least_work_bytes: int = MIN_WORK_BYTES
    max_work_bytes: int = MAX_WORK_BYTES
    max_work_values: int = MAX_WORK_VALUES
    max_ids: int = MAX_IDS


LIMITS = Limits()


class Excess(NamedTuple):
    """How much longer than any context a prompt is."""

    context_tokens: int
    """The longest there is."""
    tokens: int | None
    """How many it has, where that is known."""
    characters: int = 0
    """How many characters it has at least, else."""
    characters_a_token: int = 0
    max_ids: int | None = None
    """How many token ids are taken, where it is them that are too many to be shortened."""


class Bounds(NamedTuple):
    """How long prompts may be."""

    longest: float = math.inf
    """The longest context that an instance has told, in tokens."""
    sure: float = math.inf
    """The same if every instance has told its own: what is longer fits nowhere."""
    characters_a_token: int = UNKNOWN_CHARACTERS_A_TOKEN
    limits: Limits = LIMITS

    @property
    def work_bytes(self) -> float:
        """More JSON text is not read."""
        limits = self.limits
        wanted = max(self.longest * limits.work_bytes_a_token, limits.least_work_bytes)
        return min(wanted, limits.max_work_bytes)

    @property
    def max_characters(self) -> float:
        """What has more fits nowhere."""
        return self.sure * self.characters_a_token

    def of_tokens(self, tokens: int) -> Excess | None:
        """What is too much about so many tokens."""
        return Excess(int(self.sure), tokens) if tokens > self.sure else None

    def of_ids(self, count: int) -> Excess | None:
        """What is too much about so many token ids that an engine would shorten, or judge."""
        known = self.longest < math.inf
        most = self.limits.max_ids
        if known:
            most = max(most, IDS_A_TOKEN * int(self.longest))
        return Excess(int(self.longest) if known else 0, count, max_ids=most) if count > most else None

    def of_characters(self, characters: int) -> Excess | None:
        """What is too much about a text of at least so many characters."""
        if characters <= self.max_characters:
            return None
        return Excess(int(self.sure), None, characters, self.characters_a_token)


_OF_WIDE_BLANKS = (0xC2, 0xE1, 0xE2, 0xE3)
"""First bytes of the white space that Unicode has beside ASCII's, and of other characters."""


def least_characters(json_text: memoryview, *, blanks: bool) -> int:
    """How many characters a JSON text decodes to at least, however it is escaped.

    `blanks`: whether white space counts; templates may strip it.
    """
    found = 0
    array = np.frombuffer(json_text, np.uint8)
    lowest = ord(" ") if blanks else ord(" ") + 1
    for start in range(0, len(array), SLICE_BYTES):
        part = array[start : start + SLICE_BYTES]
        # Continuation bytes of UTF-8 are no characters of their own, and six bytes at most are one that is
        # escaped.
        counted = (part >= lowest) & ((part & 0xC0) != 0x80)
        if not blanks:
            for first in _OF_WIDE_BLANKS:
                counted &= part != first
        found += int(np.count_nonzero(counted))
        found -= 6 * int(np.count_nonzero(part == ord("\\")))
    return max(0, found - 2)
