"""A line of a recording is what a reader needs, and no more."""

import json
import pathlib

import numpy as np
import pytest

from proxy.happenings import RequestEnded
from proxy.traces.readers import ReadingOptions, read
from proxy.traces.recording import Recording
from proxy.traces.scrambling import Scrambler

KEYS = np.arange(1, 10, dtype=np.uint64)


def ended(**more: object) -> RequestEnded:
    given = {
        "outcome": "ok",
        "arrived_at": 1_700_000_000.25,
        "request_id": "secret-id",
        "client": "secret-client",
        "model": "tiny",
        "session": "secret-session",
        "first_byte_s": 0.125,
        "prompt_tokens": 150,
        "block_keys": {16: KEYS},
        "answer_tokens": 7,
        **more,
    }
    return RequestEnded("completions", seconds=1.5, **given)  # type: ignore[arg-type]  # as tests give it


def recorded(*requests: RequestEnded, least_block_tokens: int = 64) -> list[dict[str, object]]:
    recording = Recording(Scrambler(bytes(16)), least_block_tokens)
    return [json.loads(line) for line in recording.lines(requests)]


def test_a_line_has_times_lengths_and_salted_ids() -> None:
    (line,) = recorded(ended())
    ids, session = line.pop("hash_ids"), line.pop("session_id")
    assert line == {
        "timestamp": 1_700_000_000_250,
        "input_length": 150,
        "output_length": 7,
        "block_tokens": 64,
        "model": "tiny",
        "duration": 1500,
        "first_byte": 125,
        "outcome": "ok",
    }
    assert ids == Scrambler(bytes(16)).ids(KEYS[[3, 7]])  # the last ones of two whole blocks of 64 tokens
    assert session == Scrambler(bytes(16)).session("secret-client", "secret-session")


def test_nothing_in_it_can_be_read() -> None:
    (line,) = Recording().lines([ended()])
    assert b"secret" not in line
    assert not {*json.loads(line)["hash_ids"]} & {*KEYS.tolist()}


@pytest.mark.parametrize(
    ("block_keys", "block_tokens", "places"),
    [
        ({16: KEYS}, 64, [3, 7]),
        ({128: KEYS[:1]}, 128, [0]),
        ({48: KEYS[:3]}, 96, [1]),
        ({64: KEYS[:2], 16: KEYS}, 64, [3, 7]),
        ({16: KEYS[:3]}, 64, []),
    ],
)
def test_blocks_are_merged_to_a_size_worth_recording(
    block_keys: dict[int, object], block_tokens: int, places: list[int]
) -> None:
    (line,) = recorded(ended(block_keys=block_keys))
    assert line["block_tokens"] == block_tokens
    assert line["hash_ids"] == Scrambler(bytes(16)).ids(KEYS[places])


def test_what_is_not_known_is_not_there() -> None:
    unknown: dict[str, object] = {
        "prompt_tokens": None,
        "block_keys": {},
        "answer_tokens": None,
        "session": None,
    }
    (line,) = recorded(ended(**unknown, first_byte_s=None, model=None))
    assert line.keys() == {"timestamp", "block_tokens", "duration", "outcome"}


@pytest.mark.parametrize(
    ("tokens", "events", "told"), [(7, 30, 7), (None, 30, 29), (None, 1, 1), (None, None, None)]
)
def test_an_answer_without_a_count_is_as_long_as_its_events(
    tokens: int | None, events: int | None, told: int | None
) -> None:
    (line,) = recorded(ended(answer_tokens=tokens, answer_events=events))
    assert line.get("output_length") == told


def test_many_lines_are_as_each_by_itself() -> None:
    requests = [ended(block_keys={16: KEYS[:count]}, arrived_at=float(count)) for count in range(9)]
    assert recorded(*requests) == [recorded(each)[0] for each in requests]
    assert recorded() == []


def test_a_reader_understands_it(tmp_path: pathlib.Path) -> None:
    requests = [
        ended(block_keys={16: KEYS[:8]}, prompt_tokens=140),
        ended(arrived_at=1_700_000_003.0, prompt_tokens=150, answer_tokens=None),
        ended(arrived_at=1_700_000_004.0, outcome="client_error", prompt_tokens=None),
        ended(arrived_at=1_700_000_005.0, block_keys={}, session=None),
    ]
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(Recording().lines(requests)))
    found = read(path)
    assert [each.at_s for each in found.requests] == [0.0, 2.75, 4.75]
    assert [each.input_tokens for each in found.requests] == [140, 150, 150]
    first, second, third = [each.blocks for each in found.requests]
    assert first[:2] == second[:2]
    assert len({*first, *second, *third}) == 2 + 1 + 1 + 3
    assert read(path, ReadingOptions(closed=True)).requests[1].think_s == pytest.approx(1.25)
