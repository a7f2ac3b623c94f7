"""Sessions of agents: calls, sub-agents and who waited for whom, in both ways in which times are written."""

import copy
import json
import pathlib
from typing import Any

import pytest

from proxy.errors import TraceError
from proxy.traces.readers import ReadingOptions, read
from tests.proxy.traces.given import json_lines


def call(t: float, tokens: int, hash_ids: list[int], **more: object) -> dict[str, object]:
    return {
        "t": t,
        "type": "s",
        "model": "opus",
        "in": tokens,
        "out": 20,
        "hash_ids": hash_ids,
        "input_types": ["text"],
        "stop": "tool_use",
        "api_time": 1.0,
        **more,
    }


SESSION: dict[str, Any] = {
    "id": "trace_0001",
    "models": ["opus", "haiku"],
    "block_size": 64,
    "hash_id_scope": "local",
    "tool_tokens": 64,
    "system_tokens": 0,
    "requests": [
        call(0.0, 130, [1, 2]),
        call(5.0, 200, [1, 2, 3], think_time=4.0),
        {
            "t": 7.0,
            "type": "subagent",
            "agent_id": "agent_001",
            "subagent_type": "Explore",
            "status": "completed",
            "models": ["haiku"],
            "requests": [call(7.5, 100, [1], model="haiku"), call(10.0, 128, [1, 9], model="haiku")],
        },
        {
            "t": 7.0,
            "type": "subagent",
            "agent_id": "agent_002",
            "subagent_type": "Explore",
            "status": "completed",
            "models": ["haiku"],
            "requests": [call(8.0, 64, [1], api_time=5.0)],
        },
        call(14.0, 256, [1, 2, 3, 4]),
    ],
}


def relative(session: dict[str, Any]) -> dict[str, Any]:
    """The same session with times within sub-agents from the sub-agent's begin."""
    changed = copy.deepcopy(session)
    for entry in changed["requests"]:
        for inner in entry.get("requests", ()):
            inner["t"] -= entry["t"]
    return changed


def test_calls_wait_for_what_had_ended_and_parents_for_their_sub_agents(tmp_path: pathlib.Path) -> None:
    found = read(json_lines(tmp_path / "a.json", SESSION))
    assert [(each.after, each.think_s) for each in found.requests] == [
        (None, 0.0),
        (0, 4.0),
        (1, 1.5),  # 0.5 s after its sub-agent's begin, which came 1 s after the call before
        (1, 2.0),
        (2, 1.5),
        (3, 1.0),  # the second sub-agent ended last
    ]
    assert {each.at_s for each in found.requests} == {0.0}
    assert {each.session for each in found.requests} == {"trace_0001"}
    assert [each.model for each in found.requests] == ["opus", "opus", "haiku", "opus", "haiku", "opus"]


def test_calls_come_by_the_clock_on_demand(tmp_path: pathlib.Path) -> None:
    found = read(json_lines(tmp_path / "a.json", SESSION), ReadingOptions(closed=False))
    assert [each.at_s for each in found.requests] == [0.0, 5.0, 7.5, 8.0, 10.0, 14.0]
    assert {each.after for each in found.requests} == {None}


@pytest.mark.parametrize("closed", [None, False])
def test_times_within_sub_agents_may_be_their_own(closed: bool | None, tmp_path: pathlib.Path) -> None:
    options = ReadingOptions(closed=closed)
    found = read(json_lines(tmp_path / "a.json", relative(SESSION)), options)
    assert found.requests == read(json_lines(tmp_path / "b.json", SESSION), options).requests


def test_nobody_waits_for_a_sub_agent_in_the_background(tmp_path: pathlib.Path) -> None:
    session = copy.deepcopy(SESSION)
    session["requests"][3]["status"] = "async_launched"
    found = read(json_lines(tmp_path / "a.json", session))
    assert found.requests[-1].after == 4  # the other sub-agent's last


def test_ids_are_a_sessions_own_unless_they_are_global(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", SESSION, {**SESSION, "id": "other"})
    found = read(path)
    one, other = [[each for each in found.requests if each.session == s] for s in ("trace_0001", "other")]
    assert not {b for each in one for b in each.blocks} & {b for each in other for b in each.blocks}
    assert one[1].blocks[:2] == one[0].blocks[:2]
    assert [len(each.blocks) for each in one] == [3, 4, 2, 1, 2, 4]  # those that began are whole
    assert "sessions of agents share nothing with each other" in found.source

    everywhere = {**SESSION, "hash_id_scope": "global"}
    found = read(json_lines(tmp_path / "b.jsonl", everywhere, {**everywhere, "id": "other"}))
    assert {each.blocks[0] for each in found.requests} == {1}


@pytest.mark.parametrize("layout", ["a document", "a list", "a line each"])
def test_sessions_come_as_documents_or_lines(layout: str, tmp_path: pathlib.Path) -> None:
    sessions = [SESSION, {**SESSION, "id": "other"}]
    match layout:
        case "a document":
            for number, session in enumerate(sessions):
                (tmp_path / f"{number}.json").write_text(json.dumps(session, indent=2))
            paths = tmp_path
        case "a list":
            paths = tmp_path / "all.json"
            paths.write_text(json.dumps(sessions, indent=2))
        case _:
            paths = json_lines(tmp_path / "all.jsonl", *sessions)
    assert [each.session for each in read(paths).requests].count("other") == 6


def test_the_shortest_session_that_is_one(tmp_path: pathlib.Path) -> None:
    calls = [{"t": 1, "in": 600, "out": 5, "hash_ids": [4]}, {"t": 3, "in": 700, "out": 5, "hash_ids": [4]}]
    found = read(json_lines(tmp_path / "mine.json", {"requests": calls}))
    assert [(each.session, each.block_tokens, each.after) for each in found.requests] == [
        ("mine-0", 512, None),
        ("mine-0", 512, 0),
    ]
    assert found.requests[1].think_s == 2.0
    assert "a call's own time counts as thought" in found.source


def test_a_call_that_was_asked_again_counts_once(tmp_path: pathlib.Path) -> None:
    """As in the older files of kv-cache-tester, which have neither `api_time` nor `hash_id_scope`."""
    calls = []
    for at_s, blocks in ((0.0, 276), (7.0, 417), (43.0, 428)):
        call_ = {"model": "opus", "in": blocks * 64 + 25, "out": 180, "hash_ids": [*range(blocks)]}
        calls += [{"t": at_s, "type": "s", **call_}, {"t": at_s + 4.0, "type": "n", **call_}]
    found = read(json_lines(tmp_path / "a.json", {"id": "trace_0003", "block_size": 64, "requests": calls}))
    assert [(each.after, each.think_s) for each in found.requests] == [(None, 0.0), (0, 3.0), (1, 32.0)]
    assert "3 left out that repeat the streamed call before them" in found.source


def test_equal_calls_of_a_loop_are_kept(tmp_path: pathlib.Path) -> None:
    same = call(0.0, 130, [1, 2])
    calls = [same, {**same, "t": 5.0}, {**same, "t": 9.0, "type": "n", "in": 131}]
    assert len(read(json_lines(tmp_path / "a.json", {**SESSION, "requests": calls})).requests) == 3


def test_calls_without_a_prompt_or_an_answer_are_left_out(tmp_path: pathlib.Path) -> None:
    session = {
        **SESSION,
        "requests": [*SESSION["requests"], call(20.0, 0, []), {**call(21.0, 64, []), "out": None}],
    }
    found = read(json_lines(tmp_path / "a.json", session))
    assert len(found.requests) == 6
    assert "2 left out without a prompt or an answer" in found.source


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"requests": [{"in": 5}]}, "requests[0]: object missing required field t"),
        ({"requests": [{"t": "x"}]}, "requests[0].t: expected float, got str"),
        ({"requests": [call(0, 64, [1, 2])]}, "requests[0].hash_ids: 2 blocks of 64 tokens"),
        (
            {"requests": [{"t": 0, "requests": [call(0, 64, [1, 2])]}]},
            "requests[0].requests[0].hash_ids: 2 blocks of 64 tokens",
        ),
        ({"block_size": 0}, "block_size: expected int >= 1"),
    ],
)
def test_a_broken_session_is_named_with_its_member(
    change: dict[str, object], why: str, tmp_path: pathlib.Path
) -> None:
    path = json_lines(tmp_path / "a.jsonl", SESSION, {**SESSION, **change})
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 2: {why}")


def test_a_broken_document_over_several_lines_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**SESSION, "block_size": "x"}, indent=2))
    with pytest.raises(TraceError, match=r"a\.json: block_size: expected int"):
        read(path)
