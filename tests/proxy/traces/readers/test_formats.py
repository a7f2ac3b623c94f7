"""A file's format is seen in its content."""

import gzip
import pathlib

import pytest

from proxy.errors import TraceError
from proxy.traces.generators import Chats
from proxy.traces.readers import read
from proxy.traces.readers.formats import READERS, format_of
from proxy.traces.shaping import between
from proxy.traces.writing import write
from tests.proxy.traces.given import json_lines

FIRST_LINES = {
    '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [0]}': "lines",
    '{"session_id": "a", "input_length": 5, "output_length": 5}': "lines",
    '{"timestamp": 0, "input_length": 5, "outpu': "lines",
    '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 5}': "bailian",
    '{"id": "t", "requests": []}': "agents",
    '[{"id": "t", "requests": []}]': "agents",
    "{": "agents",
    "TIMESTAMP,ContextTokens,GeneratedTokens": "azure",
    "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens": "azure",
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type": "burstgpt",
    "\ufeffTimestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type": (
        "burstgpt"
    ),
}


@pytest.mark.parametrize(("line", "format_"), FIRST_LINES.items())
def test_the_first_line_tells(line: str, format_: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "any.txt"
    path.write_text(f"\n{line}\n" if not line.startswith("\ufeff") else f"{line}\n")
    assert format_of(path) == format_


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"hello\n", "line 1: of no known format; known are JSON lines"),
        (b"Timestamp,Model,Request tokens\n", "of no known format"),
        (b"\x1f\x8bnot gzip", "not whole as gzip"),
        (gzip.compress(b"x" * 10_000)[:-9], "not whole as gzip"),
    ],
)
def test_what_is_no_traffic_is_refused(content: bytes, why: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=why) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=r"missing\.jsonl: No such file"):
        read(tmp_path / "missing.jsonl")


def test_a_format_that_is_named_is_taken_as_it_is(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "a", {"timestamp": 0, "input_length": 5, "output_length": 5})
    with pytest.raises(TraceError, match="line 1: the header has no column TIMESTAMP"):
        read(path, format="azure")
    with pytest.raises(TraceError, match="x: no format; there are lines, bailian, agents, azure, burstgpt"):
        read(path, format="x")
    path.write_text("")
    for name in READERS:
        with pytest.raises(TraceError, match="no request in it"):
            read(path, format=name)


def test_files_of_a_folder_are_one_workload(tmp_path: pathlib.Path) -> None:
    line = {"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]}
    json_lines(tmp_path / "b.jsonl", {**line, "timestamp": 100})
    json_lines(tmp_path / "a.jsonl", {**line, "timestamp": 200})
    json_lines(tmp_path / "notes.txt", "not traffic")
    found = read(tmp_path)
    assert [each.at_s for each in found.requests] == [0.0, 0.1]
    assert len({each.blocks for each in found.requests}) == 1
    assert read([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]).requests == found.requests
    assert len(read(tmp_path, limit=1).requests) == 1


def test_a_slice_is_what_a_slice_of_the_whole_is(tmp_path: pathlib.Path) -> None:
    made = Chats(duration_s=200, block_tokens=64).generate()
    write(made, tmp_path / "made.jsonl")
    whole = read(tmp_path / "made.jsonl")
    cut = between(whole, 50.0, 120.0).requests
    found = read(tmp_path / "made.jsonl", from_s=50.0, to_s=120.0).requests
    assert 0 < len(found) < len(whole.requests)
    assert [(each.input_tokens, each.session, each.after) for each in found] == [
        (each.input_tokens, each.session, each.after) for each in cut
    ]
    assert found[0].at_s == 0.0
    with pytest.raises(TraceError, match="no request in it"):
        read(tmp_path / "made.jsonl", from_s=5000.0)


def test_a_folder_without_traffic_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match="no file in it that ends in"):
        read(tmp_path)
