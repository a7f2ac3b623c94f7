"""Where an adapter has a slot its legs do not wait; elsewhere they wait as long as legs take there."""

import pytest

from proxy.fleet.adapters import AdapterLegs


def test_adapters_have_slots_in_the_order_in_which_their_legs_came() -> None:
    legs = AdapterLegs()
    legs.usual_s = 2.0
    for adapter in ("a", "b", "a", "c"):
        legs.begin(adapter)
    assert [legs.wait_ms(each, 1, ()) for each in "abcd"] == [0, 2000, 4000, 6000]
    assert [legs.wait_ms(each, 2, ()) for each in "abcd"] == [0, 0, 2000, 2000]
    legs.usual_s = 1.0
    legs.end("a", 1.0)
    assert legs.wait_ms("a", 1, ()) == 0  # its other leg still runs
    legs.end("a", 1.0)
    assert [legs.wait_ms(each, 1, ()) for each in "abc"] == [2000, 0, 1000]


def test_adapters_of_other_routers_come_first_and_share_their_slot() -> None:
    legs = AdapterLegs()
    legs.usual_s = 1.0
    assert legs.wait_ms("a", 1, {"b"}) == 1000
    assert legs.wait_ms("b", 1, {"b"}) == 0
    legs.begin("a")
    assert legs.wait_ms("a", 1, {"a"}) == 0
    assert legs.wait_ms("c", 2, {"b"}) == 1000


def test_how_long_legs_take_is_the_average_of_the_latest() -> None:
    legs = AdapterLegs()
    for _ in range(100):
        legs.begin("a")
        legs.end("a", 12.0)
    assert legs.usual_s == pytest.approx(12.0, rel=0.01)
