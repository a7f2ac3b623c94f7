"""What slower tiers hold of a prompt, behind the part that an engine can compute from at once."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvevents.block_keys import Keys
from kvevents.engine_cache import EngineCache
from kvevents.residency import Residency

Found = dict[tuple[str, int], dict[str, int]]
"""Tokens by (instance, rank) and tier."""


def match(
    engines: Mapping[tuple[str, int], EngineCache],
    residency: Residency,
    keys_of: Callable[[int, int], Keys],
    tiers: Sequence[str],
    main: str,
) -> Found:
    """See `PrefixIndex.match_slower`. `keys_of(block_size, lookahead)`: the keys of the prompt's blocks but
    the last token's.
    """
    found: Found = {}
    looked: dict[tuple[int, int], tuple[list[int], npt.NDArray[np.int64]]] = {}
    for at, engine in engines.items():
        slower = [(name, engine.tiers[name].bit) for name in tiers if name in engine.tiers]
        if not any(engine.tiers[name].blocks for name, _ in slower):
            continue
        size, shape = engine.block_size, (engine.block_size, engine.lookahead)
        if shape not in looked:
            looked[shape] = residency.sets_of(keys_of(*shape))
        sets, which = looked[shape]
        fast = engine.tiers[main].bit if main in engine.tiers else 0
        start = _leading(np.array([bool(there & fast) for there in sets], np.bool_)[which])
        first = np.array([_first(there, slower) for there in sets], np.int64)[which[start:]]
        counts = np.bincount(first[: _leading(first < len(slower))], minlength=len(slower)).tolist()
        if any(counts):
            found[at] = {name: count * size for (name, _), count in zip(slower, counts, strict=True) if count}
    return found


def _leading(flags: "npt.NDArray[np.bool_]") -> int:
    """How many flags are true before the first that is false."""
    return len(flags) if flags.all() else int(flags.argmin())


def _first(there: int, tiers: Sequence[tuple[str, int]]) -> int:
    """The index of the first tier whose bit is in the set `there`; the number of tiers if none is."""
    return next((place for place, (_, bit) in enumerate(tiers) if there & bit), len(tiers))
