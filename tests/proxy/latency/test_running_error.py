"""A quantile is exact over the last predictions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.latency.running_error import RunningError


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.floats(0.01, 1))
def test_so_many_of_the_last_are_not_above_it(predicted: list[float], share: float) -> None:
    error = RunningError(16)
    for each in predicted:
        error.add(each, 2.0)
    last = sorted(abs(each - 2) / 2 for each in predicted[-16:])
    found = error.quantile(share)
    assert found in last
    assert sum(each <= found for each in last) >= share * len(last) - 1e-9
    assert found == last[max(math.ceil(share * len(last)) - 1, 0)]


def test_of_no_prediction_nothing_is_known() -> None:
    error = RunningError(4)
    assert error.quantile(0.5) is None
    error.add(3.0, 2.0)
    assert error.quantile(0.5) == pytest.approx(0.5)
