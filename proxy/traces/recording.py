"""A finished request becomes a line that a reader of traffic understands, and that tells nothing of content.

It has no text, no token and no name of a client: lengths, times, and salted ids for blocks and sessions.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from proxy.happenings import RequestEnded
from proxy.traces.readers.lines import Line
from proxy.traces.scrambling import Scrambler, Words

LEAST_BLOCK_TOKENS = 64
"""Blocks are recorded at least so large: engines have 16 tokens a block, a long prompt thousands of them, and
what two prompts share is known to some tens of tokens anyway."""

_NO_KEYS: Words = np.empty(0, dtype=np.uint64)

_encode = msgspec.json.Encoder().encode


class Recording:
    """Makes the lines of one recording: what is equal in it has equal ids. For one thread."""

    def __init__(
        self, scrambler: Scrambler | None = None, least_block_tokens: int = LEAST_BLOCK_TOKENS
    ) -> None:
        self._scrambler = Scrambler() if scrambler is None else scrambler
        self._least_block_tokens = least_block_tokens

    def lines(self, requests: Sequence[RequestEnded]) -> list[bytes]:
        """The line of each request, with its end."""
        chosen = [self._keys(request) for request in requests]
        # All at once: numpy takes as long for a few keys as for hundreds.
        ids = self._scrambler.ids(np.concatenate([keys for _, keys in chosen])) if chosen else []
        found, place = [], 0
        for request, (block_tokens, keys) in zip(requests, chosen, strict=True):
            line = self._line(request, block_tokens, ids[place : place + len(keys)])
            found.append(_encode(line) + b"\n")
            place += len(keys)
        return found

    def _keys(self, request: RequestEnded) -> tuple[int, Words]:
        """The tokens of a block, and the keys of the prompt's whole blocks of that size."""
        if not request.block_keys:
            return self._least_block_tokens, _NO_KEYS
        size = min(request.block_keys)
        factor = -(-self._least_block_tokens // size)
        # A key stands for all that lies before it too, so the last one of a large block names it.
        return size * factor, request.block_keys[size][factor - 1 :: factor]

    def _line(self, request: RequestEnded, block_tokens: int, ids: list[int]) -> Line:
        return Line(
            timestamp=_ms(request.arrived_at),
            input_length=request.prompt_tokens,
            output_length=_answer_tokens(request),
            # Without keys nothing is known of what is shared, which is not the same as nothing shared.
            hash_ids=ids if request.block_keys else None,
            session_id=(
                self._scrambler.session(request.client, request.session)
                if request.session is not None
                else None
            ),
            block_tokens=block_tokens,
            model=request.model,
            duration=_ms(request.seconds),
            first_byte=_ms(request.first_byte_s) if request.first_byte_s is not None else None,
            outcome=request.outcome,
        )


def _answer_tokens(request: RequestEnded) -> int | None:
    """The engine's count; of a stream without one, its events but the one that ends it: about one a token."""
    if request.answer_tokens is not None or request.answer_events is None:
        return request.answer_tokens
    return max(request.answer_events - 1, 1)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
