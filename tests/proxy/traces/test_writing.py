"""What is written and read again is the same workload, but for the numbers of its blocks."""

import json
import pathlib
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import TraceError
from proxy.traces.numbering import numbered
from proxy.traces.ordering import in_order
from proxy.traces.readers import read
from proxy.traces.workload import TraceRequest, Workload
from proxy.traces.writing import write
from tests.proxy.traces.given import request, workload, workloads


def again(written: Workload, *, packed: bool = False, plain: bool = False) -> list[TraceRequest]:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / ("written.jsonl.gz" if packed else "written.jsonl")
        write(written, path, plain=plain)
        return list(read(path).requests)


@given(workloads(), st.booleans())
def test_a_workload_survives_a_file(any_workload: Workload, packed: bool) -> None:
    assert again(any_workload, packed=packed) == in_order(numbered(any_workload).requests)


@given(workloads(plain=True))
def test_mooncakes_own_members_are_enough_for_an_open_loop(any_workload: Workload) -> None:
    assert again(any_workload, plain=True) == numbered(any_workload).requests


def test_a_plain_line_is_one_of_mooncakes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plain.jsonl"
    write(workload(request(0.027, (7, 8), input_tokens=600, session="s", model="m")), path, plain=True)
    assert path.read_text() == '{"timestamp":27,"input_length":600,"output_length":10,"hash_ids":[0,1]}\n'


def test_members_of_our_own_stand_only_where_they_say_something(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ours.jsonl"
    first = request(0.5, (3,), session="s")
    write(workload(first, request(0.5, (3, 4), session="s", after=0, think_s=2.25)), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sorted(line.keys() - lines[0].keys()) for line in lines] == [[], ["after", "delay"]]
    assert (lines[1]["after"], lines[1]["delay"], lines[0]["block_tokens"]) == (0, 2250, 512)


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (request(after=0), "request 1 waits for another"),
        (request(block_tokens=16, input_tokens=16), "request 1 has blocks of another size"),
    ],
)
def test_what_mooncakes_lines_cannot_say_is_refused(
    second: TraceRequest, why: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(TraceError, match=why):
        write(workload(request(), second), tmp_path / "plain.jsonl", plain=True)


def test_equal_workloads_are_equal_files(tmp_path: pathlib.Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write(workload(request(), request(2.0)), tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_place_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=r"missing/x\.jsonl: No such file"):
        write(workload(request()), tmp_path / "missing" / "x.jsonl")
