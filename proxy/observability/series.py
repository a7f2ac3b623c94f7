"""A series is declared in one place: its name, the happenings that move it, by how much, and its labels.

Labels and amounts are fields of the happenings. A series with a line for each instance is declared with
`per_instance=True`, and that is all: it gets the label `instance`, ignores instances that are not in the
fleet, and loses its lines when the instance is removed.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from proxy.happenings import Happening
from proxy.observability.family import Family, Words, family

INSTANCE = "instance"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Bounds of buckets for durations up to that of a request."""

Kinds = type[Happening] | tuple[type[Happening], ...]


class Series(msgspec.Struct, frozen=True):
    """A metric that happenings move; made by `counter` and `histogram`."""

    family: Family
    """Its name and meaning, for `/metrics` and for the page."""
    kinds: tuple[type[Happening], ...]
    """The kinds of happenings that move it."""
    labels: tuple[str, ...]
    """Fields of these happenings: all labels of the family but `instance`."""
    amount: str | None
    """The field that is added, or observed; None to count happenings. A field that is None adds nothing."""
    buckets: tuple[float, ...] | None
    """The upper bounds of a histogram's buckets; None for a counter."""
    per_instance: bool
    """Whether each instance has lines of its own, under the label `instance`."""
    starts_with: tuple[str, ...]
    """Values of its label that have a line from the start, so that their first increase is seen."""
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

    Raises ValueError for a field that no happening has, and for words of a label that it does not have.
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
