"""Every value lies on its axis, and names stand apart."""

import pytest

from proxy.simulation.report.axes import MOST_TICKS, Axis, for_values, from_zero, named, of_steps, up_to


@pytest.mark.parametrize("greatest", [0.0, 1e-7, 0.3, 1.0, 1.01, 7.0, 99.0, 100.0, 12345.0, 9e9])
def test_an_axis_from_zero_holds_the_greatest_under_round_names(greatest: float) -> None:
    axis = from_zero(greatest)
    assert axis.ticks[0] == axis.low == 0.0
    assert axis.ticks[-1] == axis.high >= greatest
    assert 2 <= len(axis.ticks) <= MOST_TICKS
    assert axis.high <= 2.5 * greatest or greatest == 0.0


@pytest.mark.parametrize("end", [0.0, 5.0, 17.0, 120.0, 3600.0])
def test_an_axis_of_time_ends_with_the_run(end: float) -> None:
    axis = up_to(end, most=4)
    assert axis.high == (end or 1.0)
    assert 2 <= len(axis.ticks) <= 4
    assert axis.ticks[-1] <= axis.high


def test_values_far_apart_have_a_logarithmic_axis() -> None:
    assert not for_values([10.0, 150.0]).is_log
    assert not for_values([]).is_log
    assert not for_values([0.0, 0.0]).is_log
    axis = for_values([37.0, 45_000.0, 0.0])
    assert axis.is_log
    assert axis.low <= 37.0
    assert axis.high >= 45_000.0
    assert axis.share(axis.low) == 0.0
    assert axis.share(axis.high) == 1.0
    assert axis.share(0.0) == 0.0
    assert 2 <= len(axis.ticks) <= MOST_TICKS
    assert axis.ticks == sorted(axis.ticks)


def test_a_logarithmic_axis_over_many_decades_names_few() -> None:
    assert 2 <= len(for_values([1e-3, 1e3]).ticks) <= 7


def test_speeds_are_named_unless_they_stand_too_close() -> None:
    assert of_steps([1.0, 2.0, 3.0]).ticks == [1.0, 2.0, 3.0]
    assert of_steps([1.0, 1.1, 8.0]).ticks == [1.0, 8.0]
    assert of_steps([2.0]).share(2.0) == 0.5


def test_a_value_beyond_the_axis_lies_at_its_end() -> None:
    axis = Axis(0.0, 10.0, [])
    assert (axis.share(-1.0), axis.share(5.0), axis.share(11.0)) == (0.0, 0.5, 1.0)


def test_names_have_no_exponent() -> None:
    assert [named(value) for value in (0.30000000000000004, 20000.0, 2e6)] == ["0.3", "20,000", "2,000,000"]
