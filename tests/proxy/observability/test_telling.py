"""A consumer that fails is told once, counted each time, and nobody else notices."""

import logging

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from proxy.happenings import Checked, ClientStalled, Happening, QueueLeft
from proxy.observability.telling import FailureCollector, Happenings, Only


class Listener:
    hears: tuple[type[Happening], ...] = (QueueLeft, ClientStalled)

    def __init__(self) -> None:
        self.heard: list[Happening] = []

    def hear(self, happening: Happening) -> None:
        self.heard.append(happening)


class Broken(Listener):
    def hear(self, happening: Happening) -> None:
        super().hear(happening)
        raise RuntimeError("no disk")


def test_a_consumer_hears_the_kinds_it_names_in_their_order_and_no_others() -> None:
    happenings, listener = Happenings(), Listener()
    happenings.tell(QueueLeft(0.5))  # before it listens
    happenings.add(listener)
    told = [QueueLeft(1.0), ClientStalled(), QueueLeft(2.0)]
    for happening in (told[0], Checked("a:1", "answered"), *told[1:]):
        happenings.tell(happening)
    assert listener.heard == told


def test_a_consumer_that_fails_harms_neither_the_teller_nor_other_consumers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    happenings, before, broken, after = Happenings(), Listener(), Broken(), Listener()
    for consumer in (before, broken, after):
        happenings.add(consumer)
    with caplog.at_level(logging.ERROR):
        for n in range(3):
            happenings.tell(QueueLeft(n))
    assert len(before.heard) == len(broken.heard) == len(after.heard) == 3
    (record,) = caplog.records
    assert record.getMessage() == "Broken failed on QueueLeft; it is told this once"
    assert record.exc_info is not None
    registry = CollectorRegistry()
    registry.register(FailureCollector(happenings))
    assert 'kvproxy_consumer_failures_total{consumer="Broken"} 3.0' in generate_latest(registry).decode()


def test_a_condition_of_several_is_asked_once_and_one_that_fails_counts_for_each() -> None:
    happenings, asked, heard = Happenings(), list[float](), list[str]()

    def is_long(left: QueueLeft) -> bool:
        asked.append(left.seconds)
        if left.seconds < 0:
            raise ValueError("no such time")
        return left.seconds > 1

    def listen(name: str, only: Only) -> None:
        happenings.listen(QueueLeft, lambda _: heard.append(name), name, only)

    listen("first", is_long)
    listen("second", is_long)
    listen("all", None)
    listen("third", is_long)
    happenings.tell(QueueLeft(2))
    assert heard == ["first", "second", "all", "third"]
    assert asked == [2, 2]
    heard.clear()
    happenings.tell(QueueLeft(0.5))
    assert heard == ["all"]
    heard.clear()
    happenings.tell(QueueLeft(-1))
    assert heard == ["all"]
    assert happenings.failures == {"first": 1, "second": 1, "third": 1}
