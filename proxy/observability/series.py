"""A series is declared on one line: its name, what moves it, by how much, and what tells its lines apart.

Labels and amounts are fields of the happening. What is counted for each instance says so with `per_instance`
alone: that gives it its label `instance`, has it ignore instances that are not in the fleet, and ends its
lines when the instance is removed. None can forget to.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from proxy.happenings import Happening
from proxy.observability.family import Family, Words, family

INSTANCE = "instance"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Bounds for all that takes as long as a request does."""

Kinds = type[Happening] | tuple[type[Happening], ...]


class Series(msgspec.Struct, frozen=True):
    """What of some happenings is counted; made by `counter` and `histogram`."""

    family: Family
    """What it is called and what it counts, for `/metrics` and for the page."""
    kinds: tuple[type[Happening], ...]
    """What moves it."""
    labels: tuple[str, ...]
    """Fields of these: all labels of its family but `instance`."""
    amount: str | None
    """The field that is added up, or observed; None to count. A field that is None adds nothing."""
    buckets: tuple[float, ...] | None
    """Upper bounds; None for a counter."""
    per_instance: bool
    starts_with: tuple[str, ...]
    """Values of its label that are there from the start, so that their first increase is seen."""
    only: Callable[[Any], bool] | None
    """Which of these happenings move it; None for all."""


def counter(
    name: str,
    help_text: str,
    kinds: Kinds,
    *labels: str,
    amount: str | None = None,
    per_instance: bool = False,
    starts_with: Iterable[str] = (),
    only: Callable[[Any], bool] | None = None,
    words: Words | None = None,
    more: str = "",
) -> Series:
    """A counter; the parameters are those of `Series` and of its `Family`.

    Raises ValueError for what no happening has, and for words of a label that it has not.
    """
    of = family(name, "counter", help_text, _all_labels(per_instance, labels), words, more)
    return _checked(Series(of, _all(kinds), labels, amount, None, per_instance, tuple(starts_with), only))


def histogram(
    name: str,
    help_text: str,
    kinds: Kinds,
    *labels: str,
    of: str = "seconds",
    buckets: tuple[float, ...] = SECONDS,
    per_instance: bool = False,
    only: Callable[[Any], bool] | None = None,
    words: Words | None = None,
    more: str = "",
) -> Series:
    """A histogram of the field `of`. Raises ValueError as `counter`."""
    lines = family(name, "histogram", help_text, _all_labels(per_instance, labels), words, more)
    return _checked(Series(lines, _all(kinds), labels, of, buckets, per_instance, (), only))


def _all(kinds: Kinds) -> tuple[type[Happening], ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _all_labels(per_instance: bool, labels: tuple[str, ...]) -> tuple[str, ...]:
    return (INSTANCE, *labels) if per_instance else labels


def _checked(series: Series) -> Series:
    name = series.family.name
    if INSTANCE in series.labels:
        raise ValueError(f"{name}: what is counted for each instance is declared with per_instance")
    if series.starts_with and (len(series.labels) != 1 or series.per_instance):
        raise ValueError(f"{name}: starts_with gives the values of one label")
    read = [*series.family.labels, *([series.amount] if series.amount else [])]
    if series.buckets is not None and (
        not series.buckets or sorted(set(series.buckets)) != [*series.buckets]
    ):
        raise ValueError(f"{name}: its buckets do not rise")
    for kind in series.kinds:
        for field in read:
            if not hasattr(kind, field):
                raise ValueError(f"{name}: {kind.__name__} has no {field}")
    return series
