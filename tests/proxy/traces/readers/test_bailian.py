"""Bailian's lines, with members as they are published."""

import pathlib

import pytest

from proxy.errors import TraceError
from proxy.traces.readers import ReadingOptions, read
from tests.proxy.traces.given import json_lines

FIRST = {
    "chat_id": 159,
    "parent_chat_id": -1,
    "timestamp": 61.125,
    "input_length": 40,
    "output_length": 132,
    "type": "text",
    "turn": 1,
    "hash_ids": [1089, 1090, 1091],
}
SECOND = {
    **FIRST,
    "chat_id": 160,
    "parent_chat_id": 159,
    "timestamp": 72.625,
    "input_length": 100,
    "turn": 2,
    "hash_ids": [1089, 1090, 7, 8, 9, 10, 11],
}
OTHER = {**FIRST, "chat_id": 5, "timestamp": 70.125, "parent_chat_id": 4}


def test_turns_come_by_the_clock_with_their_session(tmp_path: pathlib.Path) -> None:
    found = read(json_lines(tmp_path / "a.jsonl", FIRST, OTHER, SECOND))
    assert [(each.at_s, each.session, each.after) for each in found.requests] == [
        (0.0, "159", None),
        (9.0, "5", None),
        (11.5, "159", None),
    ]
    first, _, second = found.requests
    assert (first.block_tokens, first.blocks) == (16, (1089, 1090, 1091))
    assert second.blocks[:2] == first.blocks[:2]


def test_turns_wait_for_each_other_on_demand(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", FIRST, OTHER, SECOND)
    found = read(path, ReadingOptions(closed=True))
    assert [(each.at_s, each.session, each.after, each.think_s) for each in found.requests] == [
        (0.0, "159", None, 0.0),
        (0.0, "159", 0, 11.5),
        (9.0, "5", None, 0.0),
    ]
    assert "a call's own time counts as thought" in found.source


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"timestamp": -1}, "timestamp: expected float >= 0"),
        ({"hash_ids": [1] * 4}, "hash_ids: 4 blocks of 16 tokens"),
        ({"output_length": "x"}, "output_length: expected int"),
    ],
)
def test_a_broken_line_is_named(change: dict[str, object], why: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=f"line 2: {why}"):
        read(json_lines(tmp_path / "a.jsonl", FIRST, {**FIRST, **change}))
