"""A workload is plain values."""

import msgspec
import pytest

from proxy.traces.workload import TraceRequest, Workload

REQUEST = TraceRequest(at_s=1.5, input_tokens=700, output_tokens=20, blocks=(4, 9), block_tokens=512)


def test_a_request_is_a_value() -> None:
    assert msgspec.structs.replace(REQUEST) == REQUEST
    assert hash(REQUEST) == hash(msgspec.structs.replace(REQUEST))
    with pytest.raises(AttributeError):
        REQUEST.at_s = 2.0  # type: ignore[misc]  # that is what must fail


def test_a_request_that_says_no_more_is_of_an_open_loop() -> None:
    assert (REQUEST.session, REQUEST.after, REQUEST.think_s, REQUEST.model) == (None, None, 0.0, None)


def test_a_workload_is_passed_on_as_json() -> None:
    workload = Workload("two", [REQUEST, msgspec.structs.replace(REQUEST, after=0, think_s=3.0)], "by hand")
    assert msgspec.json.decode(msgspec.json.encode(workload), type=Workload) == workload
