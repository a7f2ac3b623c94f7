"""A recorder of traffic is ten lines: it hears of each finished request, and no room knows of it."""

import json
import pathlib
from typing import Any

import msgspec
import pytest

from kvevents import Slot
from proxy.edge.app_keys import SERVICE
from proxy.happenings import Happening, RequestEnded
from tests.helpers.service import UNHURRIED, fleet, wait_until


class Recorder:
    """Writes a line of JSON for each finished request."""

    hears = (RequestEnded,)

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file.open("ab", buffering=0)
        self.close = self._file.close

    def hear(self, happening: Happening) -> None:
        self._file.write(msgspec.json.encode(happening, enc_hook=lambda keys: keys.tolist()) + b"\n")


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "traffic.jsonl"


def written(file: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def lines(file: pathlib.Path, count: int) -> list[dict[str, Any]]:
    await wait_until(lambda: len(written(file)) == count, "the lines")
    return written(file)


async def test_each_request_is_recorded_with_what_can_replay_it(file: pathlib.Path) -> None:
    recorder = Recorder(file)
    async with fleet(prefill=1, decode=1, consumers=[recorder]) as pair:
        prompt = "hello " * 40
        assert (await pair.service.complete(prompt, max_tokens=3)).status == 200
        index, slot = pair.service.app[SERVICE].index, Slot(pair.engines.prefill[0].address, 0, "GPU")
        await wait_until(lambda: index.blocks().get(slot, 0) > 0, "the events of the prompt")
        for options in ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
            assert (await pair.service.complete(prompt, max_tokens=3, **options)).status == 200
        assert (await pair.service.complete("x", max_tokens=-1)).status == 400
        whole, streamed, told, refused = await lines(file, 4)
    assert (whole["route"], whole["outcome"], whole["status"]) == ("completions", "ok", 200)
    assert (whole["prefill"], whole["decode"]) == (
        pair.engines.prefill[0].address,
        pair.engines.decode[0].address,
    )
    assert (whole["model"], whole["attempts"], whole["cached_tokens"]) == ("tiny", 1, 0)
    assert 0 < whole["first_byte_s"] <= whole["seconds"]
    assert [each["stream"] for each in (whole, streamed, told)] == [False, True, True]
    assert [each["answer_tokens"] for each in (whole, streamed, told)] == [3, None, 3]
    assert whole["arrived_at"] < streamed["arrived_at"] < told["arrived_at"]
    ((size, keys),) = whole["block_keys"].items()
    assert len(keys) == whole["prompt_tokens"] // int(size) > 0
    assert streamed["block_keys"] == whole["block_keys"]
    assert streamed["cached_tokens"] > 0
    assert (refused["outcome"], refused["status"], refused["decode"]) == ("client_error", 400, None)
    recorder.close()


async def test_a_client_that_leaves_and_a_list_of_prompts_are_recorded_too(file: pathlib.Path) -> None:
    recorder = Recorder(file)
    async with fleet(prefill=1, decode=1, kv_events=False, stand_in=UNHURRIED, consumers=[recorder]) as pair:
        assert (await pair.service.complete(["a b", "c d"], max_tokens=2)).status == 200
        body = {"model": "tiny", "prompt": "x", "max_tokens": 5000, "ignore_eos": True, "stream": True}
        async with pair.service.session.post(pair.service.url + "/v1/completions", json=body) as answer:
            await answer.content.readany()
            answer.close()
        listed, left = await lines(file, 2)
    assert (listed["outcome"], listed["answer_tokens"], listed["prompt_tokens"]) == ("ok", 4, None)
    assert (left["outcome"], left["status"], left["answer_tokens"]) == ("client_left", 200, None)
    recorder.close()


async def test_a_recorder_whose_disk_is_full_harms_no_request(
    file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(file)
    recorder.close()
    async with fleet(prefill=1, decode=1, kv_events=False, consumers=[recorder]) as pair:
        for _ in range(3):
            assert (await pair.service.complete("hello")).status == 200
        failures = await pair.service.metric("kvproxy_consumer_failures_total", consumer="Recorder")
        assert failures == 3
        assert await pair.service.metric("kvproxy_requests_total", outcome="ok") == 3
    assert len([m for m in caplog.messages if m.startswith("Recorder failed")]) == 1
