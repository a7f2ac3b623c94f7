"""Lines of the decision log are JSON, one a request, and as many as were asked for."""

import asyncio
import json
import pathlib
import random

import pytest

from proxy.happenings import DecisionsLogged, Happening, RequestEnded
from proxy.observability.decision_log import DecisionLog, lines_of, sampled
from proxy.observability.record_files import RecordFiles


def ended(**more: object) -> RequestEnded:
    return RequestEnded("chat", "ok", 1.5, **more)  # type: ignore[arg-type]  # as tests give it


def test_a_line_is_the_account_with_what_came_of_it() -> None:
    request = ended(
        request_id="r1", model="m", account={"policy": "p", "cost": None}, ttft_ms=12.34567, attempts=2,
        first_byte_s=0.5, prompt_tokens=7, client="alice", session="s",
    )  # fmt: skip
    (line,) = lines_of([request])
    assert line.endswith(b"\n")
    told = json.loads(line)
    assert (told["request_id"], told["policy"], told["cost"]) == ("r1", "p", None)
    assert (told["ttft_ms"], told["first_byte_ms"], told["duration_ms"]) == (12.346, 500.0, 1500.0)
    assert "alice" not in line.decode()


def test_a_share_of_all_is_logged() -> None:
    assert [sampled(1.0)() for _ in range(3)] == [True] * 3
    assert [sampled(0.0)() for _ in range(3)] == [False] * 3
    some = sampled(0.25, random.Random(3))
    assert sum(some() for _ in range(4000)) == pytest.approx(1000, rel=0.1)


async def test_only_requests_with_an_account_are_written(tmp_path: pathlib.Path) -> None:
    told: list[Happening] = []
    log = DecisionLog(RecordFiles(tmp_path / "d.jsonl", 1000, 2), told.append, flush_s=3600)
    log.hear(ended())
    log.hear(ended(account={"policy": "p"}))
    await log.close()
    assert told == [DecisionsLogged(1)]
    assert len((await asyncio.to_thread((tmp_path / "d.jsonl").read_text)).splitlines()) == 1
