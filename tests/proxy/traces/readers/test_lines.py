"""Mooncake's lines, aiperf's with sessions, and our own, as their makers write them."""

import gzip
import pathlib
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import TraceError
from proxy.traces.readers import ReadingOptions, read
from tests.proxy.traces.given import json_lines

MOONCAKE = (
    {"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": list(range(14))},
    {"timestamp": 3052, "input_length": 2290, "output_length": 316, "hash_ids": [0, 42, 43, 44, 45]},
)


def test_mooncakes_lines(tmp_path: pathlib.Path) -> None:
    found = read(json_lines(tmp_path / "a.jsonl", *MOONCAKE))
    first, second = found.requests
    assert (first.at_s, first.input_tokens, first.output_tokens) == (0.0, 6758, 500)
    assert (first.blocks, first.block_tokens) == (tuple(range(14)), 512)
    assert second.at_s == pytest.approx(0.052)
    assert (second.session, second.after, second.model) == (None, None, None)
    assert (found.name, found.source) == ("a.jsonl", f"{tmp_path / 'a.jsonl'} (lines)")


def test_gzip_is_seen_in_the_bytes_not_in_the_name(tmp_path: pathlib.Path) -> None:
    plain = json_lines(tmp_path / "a.gz", *MOONCAKE)
    packed = tmp_path / "b.jsonl"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(packed).requests == read(plain).requests


def test_blocks_that_a_line_does_not_tell_are_nobody_elses(tmp_path: pathlib.Path) -> None:
    line = {"timestamp": 0, "input_length": 1300, "output_length": 5}
    found = read(json_lines(tmp_path / "a.jsonl", line, {**line, "hash_ids": [7, 8]}, line))
    one, told, other = [each.blocks for each in found.requests]
    assert [len(blocks) for blocks in (one, told, other)] == [3, 3, 3]
    assert told[:2] == (7, 8)
    assert len({*one, *told, *other}) == 9
    assert "share nothing" in found.source


def test_lines_out_of_order_are_put_in_order(tmp_path: pathlib.Path) -> None:
    found = read(json_lines(tmp_path / "a.jsonl", *reversed(MOONCAKE)))
    assert found.requests == read(json_lines(tmp_path / "b.jsonl", *MOONCAKE)).requests


def test_turns_of_a_session_of_aiperf_continue_each_other(tmp_path: pathlib.Path) -> None:
    turn = {"session_id": "abc", "output_length": 40}
    found = read(
        json_lines(
            tmp_path / "a.jsonl",
            {**turn, "input_length": 2000},
            {"session_id": "other", "output_length": 40, "input_length": 600},
            {**turn, "input_length": 150, "delay": 2000},
            {**turn, "input_length": 9, "delay": 500},
        )
    )
    first, other, second, third = found.requests
    assert [each.after for each in found.requests] == [None, None, 0, 2]
    assert [each.think_s for each in found.requests] == [0.0, 0.0, 2.0, 0.5]
    assert [each.input_tokens for each in found.requests] == [2000, 600, 2190, 2239]
    assert second.blocks[:3] == first.blocks[:3]  # 2040 tokens were there: three whole blocks
    assert second.blocks[3:] != first.blocks[3:]
    assert third.blocks[:4] == second.blocks[:4]
    assert not {*other.blocks} & {*third.blocks}


def test_turns_that_are_whole_prompts_do_not_continue_each_other(tmp_path: pathlib.Path) -> None:
    turn = {
        "session_id": "a",
        "input_length": 700,
        "output_length": 4,
        "delay": 10,
        "context_mode": "message_array_with_responses",
    }
    found = read(json_lines(tmp_path / "a.jsonl", turn, turn))
    assert [each.input_tokens for each in found.requests] == [700, 700]
    assert found.requests[1].after == 0


RECORDED = {"block_tokens": 64, "input_length": 64, "output_length": 4, "hash_ids": [5], "session_id": "s"}
SESSION = (
    {**RECORDED, "timestamp": 2000, "duration": 1000},
    {**RECORDED, "timestamp": 4000, "duration": 100},
    {**RECORDED, "timestamp": 1000, "duration": 9000},
    {**RECORDED, "timestamp": 11000, "duration": 100},
)
"""In the order in which they ended."""


def test_a_recording_comes_by_its_timestamps_unless_it_is_to_be_a_closed_loop(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", *SESSION)
    by_clock = read(path)
    assert [each.at_s for each in by_clock.requests] == [0.0, 1.0, 3.0, 10.0]
    assert {each.after for each in by_clock.requests} == {None}

    loop = read(path, ReadingOptions(closed=True))
    assert [(each.at_s, each.after, each.think_s) for each in loop.requests] == [
        (0.0, None, 0.0),
        (0.0, 0, 1.0),  # after the one that ended at 10 s, which came first
        (1.0, None, 0.0),  # came while that one still ran
        (1.0, 2, 1.0),
    ]


def test_think_times_are_cut_on_demand(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", *SESSION)
    loop = read(path, ReadingOptions(closed=True, max_think_s=0.25))
    assert {each.think_s for each in loop.requests} == {0.0, 0.25}


def test_answers_of_unknown_length_have_the_mean_of_the_others(tmp_path: pathlib.Path) -> None:
    lines = [{**SESSION[0], "output_length": length} for length in (10, None, 31)]
    found = read(json_lines(tmp_path / "a.jsonl", *lines))
    assert [each.output_tokens for each in found.requests] == [10, 20, 31]
    assert "1 answers of unknown length have the mean of the others, 20 tokens" in found.source


def test_what_cannot_be_replayed_is_left_out_and_counted(tmp_path: pathlib.Path) -> None:
    found = read(
        json_lines(
            tmp_path / "a.jsonl",
            SESSION[0],
            {**SESSION[0], "input_length": None},
            {**SESSION[0], "outcome": "client_error"},
            {**SESSION[0], "output_length": 0},
            {**SESSION[0], "outcome": "unavailable"},
        )
    )
    assert len(found.requests) == 2
    for why in (
        "1 left out refused for what they asked",
        "1 left out whose prompt's length is not known",
        "1 left out without an answer",
    ):
        assert why in found.source


def test_small_blocks_can_be_merged(tmp_path: pathlib.Path) -> None:
    base = {"timestamp": 0, "output_length": 1, "block_tokens": 64}
    path = json_lines(
        tmp_path / "a.jsonl",
        {**base, "input_length": 64 * 9 + 5, "hash_ids": list(range(9))},
        {**base, "input_length": 64 * 10, "hash_ids": [*range(9), 77]},
        {**base, "input_length": 64 * 10, "hash_ids": [*range(9), 77]},
    )
    found = read(path, ReadingOptions(least_block_tokens=512))
    first, second, third = found.requests
    assert {each.block_tokens for each in found.requests} == {512}
    assert first.blocks[0] == second.blocks[0] == 7  # of eight blocks the last one names all
    assert second.blocks == third.blocks == (7, 77)
    assert first.blocks[1] < 0  # five of its tokens are not told


LINE = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({**LINE, "timestamp": -1}, "timestamp: expected float >= 0"),
        ({**LINE, "timestamp": "1"}, "timestamp: expected float | null, got str"),
        ({**LINE, "timestamp": None}, "timestamp: missing"),
        ({**LINE, "input_length": 0}, "input_length: expected int >= 1"),
        ({**LINE, "input_length": 10**12}, "input_length: expected int <= 16777216"),
        ({**LINE, "input_length": None}, "input_length: missing (prompts that are given as text"),
        ({**LINE, "output_length": 2.5}, "output_length: expected int | null, got float"),
        ({**LINE, "hash_ids": [1, "x"]}, "hash_ids[1]: expected int, got str"),
        ({**LINE, "hash_ids": [1, -2]}, "hash_ids[1]: expected int >= 0"),
        (
            {**LINE, "hash_ids": [1, 2, 3]},
            "hash_ids: 3 blocks of 512 tokens, but the prompt's 600 tokens make 2",
        ),
        ({**LINE, "after": 1}, "after: line 1 does not stand before this one, which is 1"),
        ({**LINE, "block_tokens": 0}, "block_tokens: expected int >= 1"),
        ('{"timestamp": 0, "input_length": 600', "input data was truncated"),
        ('{"timestamp": 0} x', "JSON is malformed"),
        ("[1]", "expected object, got array"),
        ("\ufffd\xff", "JSON is malformed"),
    ],
)
def test_a_broken_line_is_named_with_its_member(
    line: dict[str, object] | str, why: str, tmp_path: pathlib.Path
) -> None:
    path = json_lines(tmp_path / "a.jsonl", LINE, "", line)
    with pytest.raises(TraceError) as caught:
        read(path)
    message = str(caught.value).lower()
    assert message.startswith(f"{path}, line 3: ".lower())
    assert why.lower() in message


def test_a_closed_loop_cannot_come_by_the_clock(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", LINE, {**LINE, "after": 0, "delay": 5})
    with pytest.raises(
        TraceError, match="line 2: delay: the file tells after what this request came, not when"
    ):
        read(path, ReadingOptions(closed=False))


def test_a_request_cannot_wait_for_one_that_was_left_out(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", {**LINE, "output_length": 0}, LINE, {**LINE, "after": 0})
    with pytest.raises(TraceError, match="line 3: after: line 0 has no request that was read"):
        read(path)


def test_a_file_in_which_no_answer_has_a_length_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1, "hash_ids": [1]}\n')
    with pytest.raises(TraceError, match=r"a\.jsonl"):
        read(path)


WHOLE = (
    b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2], "session_id": "a"}\n',
    b'{"requests": [{"t": 0, "in": 600, "out": 5, "hash_ids": [1]}, {"t": 1, "requests": []}]}\n',
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n",
    b"Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n",
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of some format with a few bytes changed."""
    content = bytearray(draw(st.sampled_from(WHOLE)) * 2)
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@given(st.binary(max_size=200) | damaged())
def test_no_bytes_make_another_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "a"
        path.write_bytes(content)
        caught = None
        try:
            read(path)
        except TraceError as error:
            caught = str(error)
        assert caught is None or str(path) in caught
