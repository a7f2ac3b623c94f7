"""The same content has one form, however an engine or a client writes it; what has no such form has no
key.
"""

import contextlib
import functools
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvevents.events import BlockStored, Reason

# The deepest nesting of extra keys; vLLM nests twice: the block's list, and a pair for a multi-modal item.
_MAX_DEPTH = 8


class UnkeyableRun(ValueError):  # noqa: N818  # a stranger's data, not a failure of ours
    """No keys can be made for the blocks of a run; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def token_array(token_ids: Iterable[int]) -> "array[int]":
    """The tokens, 32 bits each. Raises UnkeyableRun for one that does not fit."""
    try:
        return array("I", token_ids)
    except (OverflowError, TypeError, ValueError) as error:
        raise UnkeyableRun(Reason.TOKENS) from error


def windows(event: BlockStored) -> list[int]:
    """For each block of a run its tokens and the tokens behind it that its hash covers, all in one list.

    Raises UnkeyableRun if the number of tokens behind a block is not the same for all.
    """
    size, lookahead = event.block_size, event.lookahead_token_ids or []
    if len(lookahead) != len(event.block_hashes) or len(set(map(len, lookahead))) != 1:
        raise UnkeyableRun(Reason.MISALIGNED)
    found: list[int] = []
    for start, behind in zip(range(0, len(event.token_ids), size), lookahead, strict=True):
        found += event.token_ids[start : start + size]
        found += behind
    return found


def readable_tokens(token_ids: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The tokens up to the first that no engine can have."""
    if isinstance(token_ids, array) and token_ids.typecode == "I":
        return np.frombuffer(token_ids, np.uint32)
    if isinstance(token_ids, np.ndarray):
        if token_ids.dtype == np.uint32:
            return token_ids
        token_ids = token_ids.tolist()
    try:
        return np.frombuffer(array("I", token_ids), np.uint32)
    except (OverflowError, TypeError, ValueError):
        readable = array("I")
        with contextlib.suppress(OverflowError, TypeError, ValueError):
            readable.extend(token_ids)  # stops at the first that does not fit
        return np.frombuffer(readable, np.uint32)


def canonical_extra(lora_name: str | None, lora_id: int | None, entry: Any) -> bytes:
    """One byte string for all ways to write a block's adapter and extra keys. Raises UnkeyableRun.

    The adapter is counted once, though engines also put its name in front of the extra keys. An adapter that
    has a number and no name is known by that number to one engine only, so no prompt can have it.
    """
    parts = list(entry) if isinstance(entry, list | tuple) else [] if entry is None else [entry]
    if lora_name and parts and parts[0] == lora_name:
        del parts[0]
    return canonical_bytes(lora_name or lora_id, parts)


@functools.lru_cache(maxsize=1024, typed=True)
def plain_extra(lora_name: str | None, lora_id: int | None) -> bytes:
    """`canonical_extra` of a block with no extra keys, as most are."""
    return canonical_extra(lora_name, lora_id, None)


def canonical_bytes(adapter: str | int | None, parts: list[Any]) -> bytes:
    """One byte string for an adapter and the other parts of a block's extra keys. Raises UnkeyableRun."""
    out: list[bytes] = []
    _canonical([adapter, parts], out, _MAX_DEPTH)
    return b"".join(out)


def _canonical(value: Any, out: list[bytes], depth: int) -> None:
    if depth == 0:
        raise UnkeyableRun(Reason.EXTRA_KEYS)
    if isinstance(value, list | tuple):
        out.append(b"l%d:" % len(value))
        for item in value:
            _canonical(item, out, depth - 1)
        return
    if isinstance(value, str):
        tag, data = b"s", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        tag, data = b"b", value
    elif value is None or isinstance(value, bool | int | float):
        tag, data = b"n", f"{type(value).__name__} {value!r}".encode()
    else:
        raise UnkeyableRun(Reason.EXTRA_KEYS)
    out.append(b"%c%d:" % (tag, len(data)))
    out.append(data)
