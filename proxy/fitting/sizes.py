"""Which probes are sent depends on what an engine can take, and on nothing else: the same engine gets the
same sizes.

Lengths are spread evenly by their logarithms. Some are held out of the fit, of lengths between, to tell how
good it is.
"""

import math
import random
from collections.abc import Sequence

import msgspec

SHORTEST = 32
LONGEST = 16384
"""Longer prompts are not sent by default, though an engine may take them."""
LENGTHS = 8
REPEATS = 2
CACHED_SHARES = (0.5, 0.9)
HELD_OUT = 8
"""Prompts that are held out, a third of them with a cached prefix."""
SEQUENCES = (1, 2, 4, 8, 16)
CONTEXTS = (64, 512, 4096)
STREAMED = 32
"""Tokens of each stream."""
KV_SHARE = 0.5
"""No more of an engine's KV is taken by streams."""
PAIR_LENGTHS = 5
PAIR_HELD_OUT = 3
FEWER = 3
"""Of engines that are like one that was probed wholly every so-manieth probe is sent."""


class Alone(msgspec.Struct, frozen=True):
    """A prompt that an engine computes by itself, once its first tokens were sent if some shall be cached."""

    prompt: int
    cached: int = 0
    held_out: bool = False


class Together(msgspec.Struct, frozen=True):
    """Streams that an engine decodes at the same time."""

    sequences: int
    context: int
    """Tokens of the prompt of each."""
    held_out: bool = False


class Handed(msgspec.Struct, frozen=True):
    """A prompt that goes over a pair."""

    prompt: int
    held_out: bool = False


class Room(msgspec.Struct, frozen=True):
    """What an engine can take."""

    longest: int
    """Tokens of a prompt."""
    kv_tokens: int | None = None
    """Tokens that its memory holds; None if it does not tell."""
    caches: bool = False
    """Whether it keeps prefixes."""


def alone(room: Room) -> list[Alone]:
    """The prompts for an engine that prefills, the short ones first."""
    dice = random.Random(0)  # noqa: S311  # no secret
    found = [Alone(length) for length in _between(SHORTEST, room.longest, LENGTHS) for _ in range(REPEATS)]
    for number in range(HELD_OUT):
        length = _drawn(dice, room.longest)
        cached = length * 2 // 3 if room.caches and number % 3 == 2 else 0
        found.append(Alone(length, cached, held_out=True))
    if room.caches:
        for length in _between(max(SHORTEST, room.longest // 8), room.longest, 3):
            found += [Alone(length, int(share * length)) for share in CACHED_SHARES]
    return sorted(found, key=lambda probe: probe.prompt)


def together(room: Room) -> list[Together]:
    """The streams for an engine that decodes, few and short ones first."""
    most = math.inf if room.kv_tokens is None else KV_SHARE * room.kv_tokens
    contexts = sorted({min(context, max(room.longest - STREAMED, 1)) for context in CONTEXTS})
    found = [Together(count, context) for context in contexts for count in SEQUENCES]
    found += [
        Together(count, max(1, contexts[-1] * share // 8), held_out=True)
        for count, share in ((3, 1), (6, 3), (12, 5))
    ]
    fits = [probe for probe in found if probe.sequences * (probe.context + STREAMED) <= most]
    return sorted(fits, key=lambda probe: probe.sequences * probe.context)


def handed(room: Room) -> list[Handed]:
    """The prompts for a pair; the first one has the engines meet."""
    dice = random.Random(1)  # noqa: S311  # no secret
    found = [Handed(length) for length in _between(SHORTEST, room.longest, PAIR_LENGTHS)]
    found += [Handed(_drawn(dice, room.longest), held_out=True) for _ in range(PAIR_HELD_OUT)]
    return [Handed(min(SHORTEST, room.longest)), *sorted(found, key=lambda probe: probe.prompt)]


def fewer(probes: Sequence[Alone]) -> list[Alone]:
    """Enough to tell how much slower an engine is than one that was probed wholly."""
    return [*probes[1::FEWER]]


def _between(least: int, most: int, count: int) -> list[int]:
    least = min(least, most)
    step = (most / least) ** (1 / (count - 1))
    return [min(most, round(least * step**number)) for number in range(count)]


def _drawn(dice: random.Random, longest: int) -> int:
    return round(math.exp(dice.uniform(math.log(min(SHORTEST, longest)), math.log(longest))))
