"""A declaration is all there is to a series: what moves it, its lines, and when those end."""

import typing
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from proxy.happenings import (
    Checked,
    CircuitChanged,
    EventDropped,
    Happening,
    InstanceRemoved,
    QueueLeft,
    Refused,
    RequestEnded,
    RequestUnrouted,
    SnapshotEnded,
)
from proxy.observability.counting import move
from proxy.observability.metrics import SERIES
from proxy.observability.series import Series, counter, histogram
from proxy.observability.telling import Happenings
from proxy.phases import Phase


class Scene:
    """Series alone, and a fleet of two instances."""

    def __init__(self, *series: Series) -> None:
        self.registry = CollectorRegistry()
        self.happenings = Happenings()
        self.fleet = {"a:1", "b:1"}
        for each in series:
            move(each, self.registry, self.happenings, self.fleet.__contains__)

    def lines(self) -> dict[str, float]:
        """All but comments and when they were created."""
        text = generate_latest(self.registry).decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines if "_created" not in name}

    def tell(self, *told: Any) -> dict[str, float]:
        for happening in told:
            self.happenings.tell(happening)
        assert not self.happenings.failures
        return self.lines()


def test_a_counter_counts_or_adds_up_a_field() -> None:
    scene = Scene(
        counter("kinds", "Kinds.", EventDropped, "reason"),
        counter("blocks", "Blocks.", EventDropped, amount="count"),
    )
    lines = scene.tell(EventDropped("a:1", 0, "tokens", 3), EventDropped("b:1", 1, "tokens", 4))
    assert lines == {'kvproxy_kinds_total{reason="tokens"}': 2, "kvproxy_blocks_total": 7}


def test_a_histogram_observes_a_field_unless_it_is_none() -> None:
    scene = Scene(histogram("writing_seconds", "Writing.", SnapshotEnded, buckets=(1, 2)))
    lines = scene.tell(SnapshotEnded("a:1", 0, "written", 1.5), SnapshotEnded("a:1", 0, "failed"))
    assert lines["kvproxy_writing_seconds_count"] == 1
    assert lines['kvproxy_writing_seconds_bucket{le="2.0"}'] == 1


def test_several_kinds_may_move_one_series_and_not_all_of_a_kind_need_to() -> None:
    scene = Scene(
        counter("all", "All.", (RequestEnded, RequestUnrouted), "route", "outcome"),
        counter("good", "Good.", RequestEnded, only=lambda ended: ended.outcome == "ok"),
    )
    lines = scene.tell(
        RequestEnded("chat", "ok", 0.1), RequestEnded("chat", "cut", 0.1), RequestUnrouted("x")
    )
    assert lines == {
        'kvproxy_all_total{outcome="ok",route="chat"}': 1,
        'kvproxy_all_total{outcome="cut",route="chat"}': 1,
        'kvproxy_all_total{outcome="x",route="other"}': 1,
        "kvproxy_good_total": 1,
    }


def test_lines_may_be_there_from_the_start() -> None:
    scene = Scene(counter("why", "Why.", Refused, "reason", starts_with=("shed",)))
    assert scene.lines() == {'kvproxy_why_total{reason="shed"}': 0}


def test_lines_of_an_instance_end_when_it_is_removed_and_begin_at_nothing_when_it_returns() -> None:
    scene = Scene(counter("looks", "Looks.", Checked, "finding", per_instance=True))
    before = scene.tell(Checked("a:1", "answered"), Checked("a:1", "busy"), Checked("b:1", "answered"))
    assert len(before) == 3
    scene.fleet.remove("a:1")
    after = scene.tell(InstanceRemoved("a:1"), Checked("a:1", "answered"))
    assert after == {'kvproxy_looks_total{finding="answered",instance="b:1"}': 1}
    scene.fleet.add("a:1")
    assert scene.tell(Checked("a:1", "busy"))['kvproxy_looks_total{finding="busy",instance="a:1"}'] == 1


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: counter("x", "X.", Checked, "instance", "finding"), "per_instance"),
        (lambda: counter("x", "X.", QueueLeft, per_instance=True), "QueueLeft has no instance"),
        (lambda: counter("x", "X.", (Checked, CircuitChanged), "finding"), "CircuitChanged has no finding"),
        (lambda: counter("x", "X.", Checked, amount="seconds"), "Checked has no seconds"),
        (lambda: histogram("x", "X.", Checked), "Checked has no seconds"),
        (lambda: histogram("x", "X.", QueueLeft, buckets=(1, 3, 2)), "do not rise"),
        (lambda: histogram("x", "X.", QueueLeft, buckets=()), "do not rise"),
        (lambda: counter("x", "X.", Checked, "finding", starts_with="a", per_instance=True), "starts_with"),
        (lambda: counter("x", "X.", RequestEnded, "route", "outcome", starts_with="a"), "starts_with"),
    ],
)
def test_a_declaration_that_cannot_be_kept_is_told_when_it_is_made(declare: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        declare()


SAMPLES: dict[Any, Any] = {
    int | None: 1,
    str: "served",
    str | None: "served",
    int: 1,
    float: 0.5,
    float | None: 0.5,
    bool: True,
    Phase: Phase.PREFILL,
}


def sample(kind: type[Happening], instance: str) -> Happening:
    values = {
        name: SAMPLES[of]
        for name, of in typing.get_type_hints(kind).items()
        if name in kind.__struct_fields__
    }
    return kind(**(values | {"instance": instance}))


def test_whatever_is_counted_of_an_instance_ends_with_it() -> None:
    scene = Scene(*SERIES)
    about = {kind for series in SERIES for kind in series.kinds if hasattr(kind, "instance")}
    lines = scene.tell(*(sample(kind, "a:1") for kind in about))
    named = {line.partition("{")[0] for line in lines if 'instance="a:1"' in line}
    assert len(named) >= len([series for series in SERIES if series.per_instance])
    assert not [line for line in scene.tell(InstanceRemoved("a:1")) if "a:1" in line]
