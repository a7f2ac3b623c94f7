"""`/metrics` shows to the byte what the library's own counters and histograms would show."""

from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from proxy.happenings import EventDropped, Happening, InstanceRemoved, LegEnded, QueueLeft, Refused
from proxy.observability.counting import move
from proxy.observability.family import PREFIX
from proxy.observability.series import INSTANCE, Series, counter, histogram
from proxy.observability.telling import Happenings
from proxy.phases import Phase

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it

SERIES = (
    counter("refused", "Those that\nwere not let in.", Refused, "reason", starts_with=("shed", "stopping")),
    counter("waits", "Waits.", QueueLeft),
    counter("legs", "Legs.", LegEnded, "phase", "outcome", per_instance=True),
    counter("tokens", "Tokens.", LegEnded, amount="prompt_tokens", per_instance=True),
    counter("drops", "Drops.", EventDropped, "rank", "reason", amount="count"),
    histogram("wait_seconds", "Waits.", QueueLeft, buckets=(0.001, 0.25, 1, 3600, 12345678)),
    histogram("leg_seconds", "Legs.", LegEnded, "phase", per_instance=True, only=attrgetter("answered")),
    histogram("token_counts", "Tokens.", LegEnded, of="prompt_tokens", buckets=(0, 10)),
    histogram("below_nothing", "Drops.", EventDropped, of="count", buckets=(-1, 1)),
)

WORDS = st.sampled_from(("shed", "queue_full", 'said "no"', "back\\slash\n", "ü"))
INSTANCES = st.sampled_from(("a:1", "b:1", "[::1]:8000"))
SECONDS = st.one_of(
    st.sampled_from((0.0, 0.001, 0.005, 0.25, 1.0, 1, 3600, 300.0)),
    st.floats(0, 1e9, allow_subnormal=False),
)
COUNTS = st.integers(0, 2**40)
HAPPENINGS: st.SearchStrategy[Happening] = st.one_of(
    st.builds(Refused, WORDS),
    st.builds(QueueLeft, SECONDS),
    st.builds(
        LegEnded,
        st.sampled_from(Phase),
        INSTANCES,
        st.integers(0, 3),
        st.just(0.0),
        SECONDS,
        WORDS,
        st.booleans(),
        st.none(),
        st.none() | COUNTS,
    ),
    st.builds(EventDropped, INSTANCES, st.integers(0, 3), WORDS, COUNTS),
    st.builds(InstanceRemoved, INSTANCES),
)


class Library:
    """A series counted by the library itself, in the plainest way."""

    def __init__(self, series: Series, registry: CollectorRegistry) -> None:
        self.series = series
        of = (PREFIX + series.family.name, series.family.help_text, series.family.labels)
        self.lines: Counter | Histogram
        if series.buckets is None:
            self.lines = Counter(*of, registry=registry)
        else:
            self.lines = Histogram(*of, buckets=series.buckets, registry=registry)
        for value in series.starts_with:
            self.lines.labels(value)

    def hear(self, told: Any) -> None:
        if self.series.per_instance and isinstance(told, InstanceRemoved):
            self.lines.remove_by_labels({INSTANCE: told.instance})
        if not isinstance(told, self.series.kinds) or (self.series.only and not self.series.only(told)):
            return
        amount = 1 if self.series.amount is None else getattr(told, self.series.amount)
        if amount is None and self.series.buckets is not None:
            return
        values = [getattr(told, label) for label in self.series.family.labels]
        line = self.lines.labels(*values) if values else self.lines
        if isinstance(line, Counter):
            line.inc(amount or 0)
        else:
            line.observe(amount)


@given(st.lists(HAPPENINGS, max_size=40))
def test_counters_and_histograms_show_what_the_library_would(told: list[Happening]) -> None:
    ours, theirs, happenings = CollectorRegistry(), CollectorRegistry(), Happenings()
    for series in SERIES:
        move(series, ours, happenings, lambda _: True)
    library = [Library(series, theirs) for series in SERIES]
    for happening in told:
        happenings.tell(happening)
        for lines in library:
            lines.hear(happening)
    assert not happenings.failures
    assert generate_latest(ours).decode() == generate_latest(theirs).decode()


def test_no_two_series_have_one_name() -> None:
    registry, happenings = CollectorRegistry(), Happenings()
    move(SERIES[0], registry, happenings, lambda _: True)
    for other in (
        counter("refused", "Others.", QueueLeft),
        histogram("refused", "Others.", QueueLeft),
    ):
        with pytest.raises(ValueError, match="kvproxy_refused"):
            move(other, registry, happenings, lambda _: True)
    assert generate_latest(registry).decode().count("# TYPE") == 1


def test_a_counter_never_falls() -> None:
    registry, happenings = CollectorRegistry(), Happenings()
    move(counter("drops", "Drops.", EventDropped, amount="count"), registry, happenings, lambda _: True)
    for count in (3, -1, 2):
        happenings.tell(EventDropped("a:1", 0, "tokens", count))
    assert "kvproxy_drops_total 5.0" in generate_latest(registry).decode()
    assert happenings.failures == {"kvproxy_drops": 1}
