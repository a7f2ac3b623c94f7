"""A series is declared on one line: its name, what moves it, by how much, and what tells its lines apart.

Labels and amounts are fields of the happening. What is counted for each instance says so with `per_instance`
alone: that gives it its label `instance`, has it ignore instances that are not in the fleet, and ends its
lines when the instance is removed. None can forget to.
"""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram

from proxy.happenings import Happening, InstanceRemoved
from proxy.observability.family import PREFIX, Family, Words, family
from proxy.observability.telling import Happenings

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
    for kind in series.kinds:
        for field in read:
            if not hasattr(kind, field):
                raise ValueError(f"{name}: {kind.__name__} has no {field}")
    return series


def move(
    series: Series, registry: CollectorRegistry, happenings: Happenings, known: Callable[[str], bool]
) -> None:
    """Register a series, and have happenings move it from now on.

    `known` tells instances that are in the fleet. Raises ValueError if there is one of that name.
    """
    moved = _Moved(series, registry, known)
    name = PREFIX + series.family.name
    for kind in series.kinds:
        happenings.listen(kind, moved.hear, name)
    if series.per_instance:
        happenings.listen(InstanceRemoved, moved.forget, name)


class _Moved:
    """A series that is moved: its lines, by the values of their labels."""

    def __init__(self, series: Series, registry: CollectorRegistry, known: Callable[[str], bool]) -> None:
        name, help_text, names = PREFIX + series.family.name, series.family.help_text, series.family.labels
        self._values: Callable[[Any], Any] = attrgetter(*names) if names else lambda _: ()
        self._amount = attrgetter(series.amount) if series.amount else None
        self._known = known if series.per_instance else None
        self._only = series.only
        self._family: Counter | Histogram
        if series.buckets is None:
            self._family = Counter(name, help_text, names, registry=registry)
        else:
            self._family = Histogram(name, help_text, names, buckets=series.buckets, registry=registry)
        self._counts = series.buckets is None
        self._lines: dict[Any, Callable[[float], None]] = {}
        """How each line is moved: the library finds it behind a lock and takes three times as long."""
        for value in series.starts_with:
            self._line(value)

    def hear(self, happening: Any) -> None:
        """One of the happenings that move it."""
        if self._only is not None and not self._only(happening):
            return
        if self._known is not None and not self._known(happening.instance):
            return
        amount = 1.0 if self._amount is None else self._amount(happening)
        if amount is None:
            if not self._counts:
                return
            amount = 0.0
        values = self._values(happening)
        (self._lines.get(values) or self._line(values))(amount)

    def forget(self, removed: InstanceRemoved) -> None:
        """The lines of an instance end."""
        self._family.remove_by_labels({INSTANCE: removed.instance})
        self._lines.clear()  # found again when they move

    def _line(self, values: Any) -> Callable[[float], None]:
        line = self._family
        if values != ():
            line = line.labels(*(values if isinstance(values, tuple) else (values,)))
        move = self._lines[values] = line.inc if isinstance(line, Counter) else line.observe
        return move
