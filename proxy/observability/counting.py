"""The numbers of series are plain ones, moved by the event loop alone; `/metrics` shows them as the
library's. The library's own counters and histograms take a lock and a dozen calls for each step.
"""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from operator import attrgetter
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.happenings import InstanceRemoved
from proxy.observability.family import PREFIX
from proxy.observability.series import Series
from proxy.observability.telling import Happenings

Line = TypeVar("Line")

Known = Callable[[str], bool]
"""Whether an instance is in the fleet."""


def move(series: Series, registry: CollectorRegistry, happenings: Happenings, known: Known) -> None:
    """Register a series, and have happenings move it from now on. Raises ValueError if its name is taken."""
    lines = _lines_of(series, known)
    registry.register(lines)
    name = PREFIX + series.family.name
    for kind in series.kinds:
        happenings.listen(kind, lines.hear, name, series.only)
    if series.per_instance:
        happenings.listen(InstanceRemoved, lines.forget, name)


class _Lines(Collector, Generic[Line]):
    """The lines of a series, by the values of their labels."""

    def __init__(self, series: Series, known: Known, begin: Callable[[], Line]) -> None:
        self._family = series.family
        self._known = known if series.per_instance else None
        self._begin = begin
        labels = series.family.labels
        self._values: Callable[[Any], Any] = attrgetter(*labels) if labels else _no_values
        self._lines: dict[tuple[str, ...], Line] = {}
        self._found: dict[Any, Line] = {}
        """The lines of `_lines` that have moved, by the values of their labels as happenings have them."""
        for values in series.starts_with if labels else [()]:
            self._line(values)

    @abstractmethod
    def hear(self, happening: Any) -> None:
        """Move a line by a happening."""

    @abstractmethod
    def _shown(self, lines: Mapping[tuple[str, ...], Line]) -> Metric:
        """The family with these lines."""

    def describe(self) -> Iterable[Metric]:
        """As prometheus_client asks, which refuses a second series of the same name by it."""
        return [self._shown({})]

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks."""
        return [self._shown(self._lines)]

    def forget(self, removed: InstanceRemoved) -> None:
        """Drop the lines of an instance."""
        self._lines = {values: line for values, line in self._lines.items() if values[0] != removed.instance}
        self._found.clear()  # found again when they move

    def _line(self, values: Any) -> Line | None:
        """The line with these values, made if there is none; None if its instance is not in the fleet."""
        words = tuple(map(str, values)) if isinstance(values, tuple) else (str(values),)
        if self._known is not None and not self._known(words[0]):
            return None
        line = self._lines.get(words)
        if line is None:
            line = self._lines[words] = self._begin()
        self._found[values] = line
        return line


class _Count:
    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0.0


class _Counter(_Lines[_Count]):
    """Counts happenings."""

    def __init__(self, series: Series, known: Known) -> None:
        super().__init__(series, known, _Count)

    def hear(self, happening: Any) -> None:
        values = self._values(happening)
        line = self._found.get(values) or self._line(values)
        if line is not None:
            line.total += 1.0

    def _shown(self, lines: Mapping[tuple[str, ...], _Count]) -> Metric:
        family = self._family.counter()
        for values, line in lines.items():
            family.add_metric(values, line.total)
        return family


class _Sum(_Counter):
    """Adds up a field of happenings."""

    def __init__(self, series: Series, known: Known, amount: str) -> None:
        super().__init__(series, known)
        self._amount = attrgetter(amount)

    def hear(self, happening: Any) -> None:
        """Add the field. Raises ValueError if it is negative: a counter never falls."""
        amount = self._amount(happening) or 0.0
        if amount < 0:
            raise ValueError(f"{self._family.name} would fall by {-amount}")
        values = self._values(happening)
        line = self._found.get(values) or self._line(values)
        if line is not None:
            line.total += amount


class _Observed:
    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        """The count of each bucket alone, without the buckets below it."""
        self.total = 0.0


class _Histogram(_Lines[_Observed]):
    """Observes a field of happenings."""

    def __init__(self, series: Series, known: Known, amount: str, bounds: tuple[float, ...]) -> None:
        self._amount = attrgetter(amount)
        self._bounds = bounds
        self._as_words = [*map(floatToGoString, bounds), "+Inf"]
        super().__init__(series, known, lambda: _Observed(len(bounds) + 1))

    def hear(self, happening: Any) -> None:
        """Observe the field, unless it is None."""
        amount = self._amount(happening)
        if amount is None:
            return
        values = self._values(happening)
        line = self._found.get(values) or self._line(values)
        if line is not None:
            line.counts[bisect_left(self._bounds, amount)] += 1
            line.total += amount

    def _shown(self, lines: Mapping[tuple[str, ...], _Observed]) -> Metric:
        family = self._family.histogram()
        for values, line in lines.items():
            buckets = list(zip(self._as_words, accumulate(line.counts), strict=True))
            family.add_metric(values, buckets, line.total)
            if self._bounds[0] < 0:  # no sum then, but the family leaves out the count as well
                labels = dict(zip(self._family.labels, values, strict=True))
                family.add_sample(f"{family.name}_count", labels, buckets[-1][1])
        return family


def _lines_of(series: Series, known: Known) -> _Counter | _Histogram:
    if series.amount is None:
        return _Counter(series, known)
    if series.buckets is None:
        return _Sum(series, known, series.amount)
    return _Histogram(series, known, series.amount, series.buckets)


def _no_values(_happening: Any) -> tuple[()]:
    return ()
