"""The decision log has a line for each request that was decided about: what decided, and what came of it."""

import asyncio
import json
import pathlib
from typing import Any

import pytest

from proxy.config import Config, Recordings
from proxy.errors import ConfigError
from proxy.happenings import Happening, RequestEnded
from proxy.service import assemble
from proxy.simulation.live.faults import Fault
from tests.helpers.service import Service, engines, kvproxy, prose

SECRETS = {"user": "alice", "cache_salt": "pepper"}
PARTS = ("wait", "prefill", "overhead", "handshake", "transfer", "decode_wait", "step")


class Heard:
    """Hears how requests end."""

    hears = (RequestEnded,)

    def __init__(self) -> None:
        self.ends: list[RequestEnded] = []

    def hear(self, happening: Happening) -> None:
        assert isinstance(happening, RequestEnded)
        self.ends.append(happening)


async def lines_of(service: Service, file: pathlib.Path, count: int) -> list[dict[str, Any]]:
    await service.counts(count, "kvproxy_logged_decisions_total")
    text = await asyncio.to_thread(file.read_text)
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "decisions.jsonl"


async def test_a_line_has_the_terms_those_that_came_next_and_what_was_observed(file: pathlib.Path) -> None:
    settings: dict[str, Any] = {"decision_headers": True, "bypass_tokens": 0}
    async with engines(prefill=2, decode=2) as made:
        config = made.config(policy="least_ms", recordings=Recordings(decision_log=file), **settings)
        async with kvproxy(config) as service:
            answers = [
                await service.complete(prose(40), stream=stream, max_tokens=4, **SECRETS)
                for stream in (True, False)
            ]
            assert [answer.status for answer in answers] == [200, 200]
            streamed, whole = await lines_of(service, file, 2)
            assert await service.metric("kvproxy_ttft_prediction_error_seconds_count") == 1
            assert await service.metric("kvproxy_ttft_prediction_ratio_count") == 1
            assert await service.metric("kvproxy_unlogged_decisions_total") == 0
    for line, answer in ((streamed, answers[0]), (whole, answers[1])):
        assert line["request_id"] == answer.headers["X-Request-Id"]
        assert (line["prefill"], line["decode"]) == (
            answer.headers["X-Kvproxy-Prefill"],
            answer.headers["X-Kvproxy-Decode"],
        )
        assert (line["policy"], line["unit"], line["outcome"], line["status"], line["attempts"]) == (
            "least_ms", "milliseconds", "ok", 200, 1,
        )  # fmt: skip
        assert line["decoded_on"] == line["decode"]
        terms = line["terms"]
        assert terms["cost_ms"] == pytest.approx(line["cost"], abs=0.01)
        assert terms["ttft_ms"] == pytest.approx(sum(terms[f"{part}_ms"] for part in PARTS), abs=0.02)
        assert len(line["runners_up"]) == 3, "of two by two"
        assert all(other["cost"] >= line["cost"] and other["terms"] for other in line["runners_up"])
        assert line["prompt_tokens"] > line["uncached_tokens"] >= 1 or line["cached_tokens"] == 0
        assert 0 < line["prefill_ms"] <= line["first_byte_ms"] <= line["duration_ms"]
        assert line["predicted_ttft_ms"] == pytest.approx(terms["ttft_ms"], rel=0.5)
    assert 0 < streamed["ttft_ms"] <= streamed["first_byte_ms"]
    assert whole["ttft_ms"] is None, "nobody sees the first token of an answer that comes whole"
    text = await asyncio.to_thread(file.read_text)
    assert not any(secret in text for secret in ("alice", "pepper", prose(40)[:30]))


async def test_a_policy_that_prices_legs_is_told_leg_by_leg(file: pathlib.Path) -> None:
    async with engines(prefill=3, decode=1) as made:
        config = made.config(policy="cache_affinity", recordings=Recordings(decision_log=file))
        async with kvproxy(config) as service:
            assert (await service.complete(prose(40), max_tokens=2)).status == 200
            (line,) = await lines_of(service, file, 1)
            assert await service.metric("kvproxy_ttft_prediction_error_seconds_count") == 0
    assert (line["terms"], line["predicted_ttft_ms"]) == (None, None)
    assert set(line["cost"]) == {"prefill", "decode"}
    assert len(line["runners_up"]["prefill"]) == 2
    assert line["runners_up"]["decode"] == []
    told = {other["instance"] for other in line["runners_up"]["prefill"]} | {line["prefill"]}
    assert told == {engine.address for engine in made.prefill}


async def test_a_request_that_was_tried_again_has_the_decision_that_served_it(file: pathlib.Path) -> None:
    async with engines(prefill=2, decode=1) as made:
        config = made.config(policy="least_ms", recordings=Recordings(decision_log=file), bypass_tokens=0)
        async with kvproxy(config) as service:
            for engine in made.prefill:
                engine.faults.add(Fault(kind="status", path="/v1/completions", status=500, times=1))
            assert (await service.complete(prose(40), max_tokens=2)).status == 200
            (line,) = await lines_of(service, file, 1)
    assert (line["attempts"], line["outcome"]) == (3, "ok")
    assert line["prefill"] in {engine.address for engine in made.prefill}
    assert line["terms"]


async def test_a_request_that_fails_has_a_line_too(file: pathlib.Path) -> None:
    async with engines(prefill=1, decode=1) as made:
        config = made.config(policy="least_ms", recordings=Recordings(decision_log=file), bypass_tokens=0)
        async with kvproxy(config) as service:
            made.decode[0].faults.add(Fault(kind="status", path="/v1/completions", status=500))
            assert (await service.complete(prose(40), max_tokens=2)).status == 500
            (line,) = await lines_of(service, file, 1)
    assert (line["status"], line["outcome"]) == (500, "engine_error")
    assert (line["decode"], line["ttft_ms"]) == (made.decode[0].address, None)


async def test_without_a_log_nothing_is_made_for_it() -> None:
    heard = Heard()
    async with engines(prefill=1, decode=1) as made:
        async with kvproxy(made.config(policy="cache_affinity"), consumers=[heard]) as service:
            assert (await service.complete(prose(40), stream=True, max_tokens=2)).status == 200
        async with kvproxy(made.config(policy="least_ms"), consumers=[heard]) as service:
            assert (await service.complete(prose(40), stream=True, max_tokens=2)).status == 200
            await service.settled()
    plain, predicted = heard.ends
    assert (plain.account, plain.ttft_ms, plain.predicted_ttft_ms) == (None, None, None)
    assert predicted.account is None
    assert predicted.ttft_ms is not None
    assert predicted.predicted_ttft_ms is not None


def test_a_place_that_will_not_do_is_refused_at_the_start(tmp_path: pathlib.Path) -> None:
    for name, why in (("missing/log.jsonl", "there is no directory"), ("log.txt", "must end in .jsonl")):
        recordings = Recordings(decision_log=tmp_path / name)
        with pytest.raises(ConfigError, match=f"--decision-log .*{why}"):
            assemble(Config(model="tiny", recordings=recordings))


def test_a_recording_and_the_log_are_two_files(tmp_path: pathlib.Path) -> None:
    recordings = Recordings(record=tmp_path / "t.jsonl", decision_log=tmp_path / "." / "t")
    with pytest.raises(ConfigError, match=r"--decision-log .*--record writes there"):
        assemble(Config(model="tiny", recordings=recordings))


async def test_of_too_many_pairs_only_the_chosen_one_is_looked_at(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.scheduling.placement.MOST_PAIRS", 3)
    async with engines(prefill=2, decode=2) as made:
        config = made.config(policy="least_ms", recordings=Recordings(decision_log=file), bypass_tokens=0)
        async with kvproxy(config) as service:
            goal = {"X_Kvproxy_TTFT_Ms": "600000"}
            body = {"model": "tiny", "prompt": prose(40), "max_tokens": 2}
            assert (await service.ask("/v1/completions", body, **goal)).status == 200
            (line,) = await lines_of(service, file, 1)
    assert line["runners_up"] is None
    assert line["cost"] == line["terms"]["cost_ms"]
