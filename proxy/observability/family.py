"""A `Family` is the name and meaning of a metric, said once: `/metrics` and docs/metrics.md are made of it.

    WAITING = gauge("queued_requests", "Requests that wait.")
    WRITTEN = counted("snapshots", "Snapshots by outcome.", ("outcome",), words={"outcome": {"failed": ""}})

`words` explains the values of labels; `more` has, in Markdown, what only the page has room for. A metric that
happenings move has a family too: `series` makes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

PREFIX = "kvproxy_"

Words = Mapping[str, Mapping[str, str]]
"""By the names of labels: their values, each with its meaning in Markdown, or "" if the value says it."""

UNITS = ("seconds", "bytes", "tokens", "blocks")
"""The last words of names that are the unit of the values."""


class Family(msgspec.Struct, frozen=True):
    """A metric and all its lines; made by `counted`, `gauge` and `distribution`, or by `series`."""

    name: str
    """Without `kvproxy_`, and without `_total`."""
    type: Literal["counter", "gauge", "histogram"]
    help_text: str
    """A sentence for `/metrics` and for the page."""
    labels: tuple[str, ...]
    words: Words
    more: str
    """Sentences for the page alone, in Markdown; links are relative to docs/."""

    @property
    def served_as(self) -> str:
        """Its name in `/metrics`; the lines of a histogram add endings of their own."""
        return f"{PREFIX}{self.name}{'_total' if self.type == 'counter' else ''}"

    @property
    def unit(self) -> str:
        """The unit of its values, as its name says; `count` if the name has none."""
        return next((unit for unit in UNITS if self.name.endswith(unit)), "count")

    def gauge(self) -> GaugeMetricFamily:
        """The library's gauge without lines, for a collector to fill."""
        return GaugeMetricFamily(PREFIX + self.name, self.help_text, labels=self.labels)

    def counter(self) -> CounterMetricFamily:
        """As `gauge`."""
        return CounterMetricFamily(PREFIX + self.name, self.help_text, labels=self.labels)

    def histogram(self) -> HistogramMetricFamily:
        """As `gauge`."""
        return HistogramMetricFamily(PREFIX + self.name, self.help_text, labels=self.labels)

    def registered_gauge(self, registry: CollectorRegistry) -> Gauge:
        """The library's gauge, registered, for the caller to set. Raises ValueError if the name is taken."""
        return Gauge(PREFIX + self.name, self.help_text, self.labels, registry=registry)


class Group(msgspec.Struct, frozen=True):
    """Families that stand together on the page."""

    title: str
    families: tuple[Family, ...]
    text: str = ""
    """What is true of all of them, in Markdown."""


def counted(
    name: str, help_text: str, labels: Sequence[str] = (), *, words: Words | None = None, more: str = ""
) -> Family:
    """A counter that is read at the scrape. Raises ValueError for words of a label that it does not have."""
    return family(name, "counter", help_text, labels, words, more)


def gauge(
    name: str, help_text: str, labels: Sequence[str] = (), *, words: Words | None = None, more: str = ""
) -> Family:
    """A gauge that is read at the scrape. Raises ValueError as `counted`."""
    return family(name, "gauge", help_text, labels, words, more)


def distribution(
    name: str, help_text: str, labels: Sequence[str] = (), *, words: Words | None = None, more: str = ""
) -> Family:
    """A histogram that is read at the scrape. Raises ValueError as `counted`."""
    return family(name, "histogram", help_text, labels, words, more)


def family(
    name: str,
    kind: Literal["counter", "gauge", "histogram"],
    help_text: str,
    labels: Iterable[str],
    words: Words | None,
    more: str,
) -> Family:
    """A family of the type `kind`. Raises ValueError for words of a label that it does not have."""
    made = Family(name, kind, help_text, tuple(labels), words or {}, more)
    for label in made.words:
        if label not in made.labels:
            raise ValueError(f"{name}: words for {label}, which is no label of it")
    return made
