"""What is recorded with `--record` is the workload that was sent, and nothing of what was said in it."""

import asyncio
import pathlib
import random
from typing import Any

import pytest

from proxy.config import Config, Recordings
from proxy.errors import ConfigError
from proxy.happenings import Happening, RequestEnded
from proxy.scheduling.policies import LeastLoad
from proxy.service import assemble
from proxy.traces.generators import Chats
from proxy.traces.readers import ReadingOptions, read
from proxy.traces.workload import TraceRequest
from tests.helpers.service import Pair, Service, fleet, wait_until

SENT = Chats(
    sessions_per_minute=30,
    duration_s=10,
    turns=4,
    message_tokens=90,
    output_tokens=6,
    system_tokens=200,
    block_tokens=64,
    most_tokens=1500,
    seed=4,
).generate()


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "traffic.jsonl"


def tokens(request: TraceRequest) -> list[int]:
    """A prompt of tokens that are equal where the request's blocks are."""
    found: list[int] = []
    for block in request.blocks:
        dice = random.Random(block)
        found += [dice.randrange(300, 4000) for _ in range(request.block_tokens)]
    return found[: request.input_tokens]


def whole_blocks(requests: list[TraceRequest]) -> list[list[int]]:
    """The ids of whole blocks, numbered as they occur: what is equal is equal."""
    known: dict[int, int] = {}
    return [
        [
            known.setdefault(block, len(known))
            for block in each.blocks[: each.input_tokens // each.block_tokens]
        ]
        for each in requests
    ]


async def send(service: Service, request: TraceRequest, **more: Any) -> None:
    members = {"max_tokens": request.output_tokens, "ignore_eos": True, **more}
    assert (await service.complete(tokens(request), **members)).status == 200


async def test_a_recording_that_is_read_is_the_workload_that_was_sent(file: pathlib.Path) -> None:
    assert len(SENT.requests) > 10
    ways: tuple[dict[str, Any], ...] = ({}, {"stream": True, "stream_options": {"include_usage": True}})
    async with fleet(prefill=1, decode=1, recordings=Recordings(record=file)) as pair:
        for number, request in enumerate(SENT.requests):
            await send(pair.service, request, prompt_cache_key=request.session, **ways[number % 2])
        await pair.service.counts(len(SENT.requests), "kvproxy_recorded_requests_total")
        assert await pair.service.metric("kvproxy_unrecorded_requests_total") == 0
    found = read(file, ReadingOptions(closed=True))
    sent = list(SENT.requests)
    assert [(each.input_tokens, each.output_tokens) for each in found.requests] == [
        (each.input_tokens, each.output_tokens) for each in sent
    ]
    assert whole_blocks(list(found.requests)) == whole_blocks(sent)
    assert {each.block_tokens for each in found.requests} == {64}
    assert [each.after for each in found.requests] == [each.after for each in sent]
    assert len({(a.session, b.session) for a, b in zip(found.requests, sent, strict=True)}) == len(
        {each.session for each in sent}
    )
    assert {each.model for each in found.requests} == {"tiny"}
    by_clock = [each.at_s for each in read(file).requests]
    assert by_clock == sorted({*by_clock})


@pytest.mark.parametrize("settings", [{"policy": LeastLoad()}, {"kv_events": False}])
async def test_prompts_are_known_whatever_the_policy_reads(
    settings: dict[str, Any], file: pathlib.Path
) -> None:
    sent = [*SENT.requests][:3]
    async with fleet(prefill=1, decode=1, recordings=Recordings(record=file), **settings) as pair:
        for request in sent:
            await send(pair.service, request)
    found = list(read(file).requests)
    assert [each.input_tokens for each in found] == [each.input_tokens for each in sent]
    assert whole_blocks(found) == whole_blocks(sent)


async def test_nothing_of_a_request_can_be_read_in_it(file: pathlib.Path) -> None:
    async with fleet(prefill=1, decode=1, recordings=Recordings(record=file)) as pair:
        prompt = "the secret word is swordfish " * 20
        answer = await pair.service.complete(prompt, user="alice", cache_salt="pepper")
        assert (await pair.service.chat(prompt, user="alice")).status == 200
    written = await asyncio.to_thread(file.read_text)
    for secret in ("secret", "swordfish", "alice", "pepper", answer.headers["X-Request-Id"]):
        assert secret not in written


async def test_of_streams_that_tell_no_usage_the_events_are_counted(file: pathlib.Path) -> None:
    async with fleet(prefill=1, decode=1, recordings=Recordings(record=file)) as pair:
        for length in (3, 30):
            await send(pair.service, SENT.requests[0], stream=True, max_tokens=length)
        assert (await pair.service.chat("hello", stream=True, max_tokens=30, ignore_eos=True)).status == 200
    found = [each.output_tokens for each in read(file).requests]
    assert found == [pytest.approx(length, abs=2) for length in (3, 30, 30)]


async def test_a_folder_of_recordings_can_be_read_whatever_they_were_called(file: pathlib.Path) -> None:
    for _ in range(2):
        recordings = Recordings(record=file.with_suffix(""))
        async with fleet(prefill=1, decode=1, recordings=recordings) as pair:
            await send(pair.service, SENT.requests[0])
    assert len(read(file.parent).requests) == 2


async def test_a_full_disk_harms_no_request(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from proxy.observability.record_files import RecordFiles

    def full(self: RecordFiles, lines: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordFiles, "write", full)
    async with fleet(prefill=1, decode=1, recordings=Recordings(record=file)) as pair:
        await send(pair.service, SENT.requests[0])
        await pair.service.counts(1, "kvproxy_unrecorded_requests_total", reason="disk")
        await send(pair.service, SENT.requests[0])
        assert await pair.service.metric("kvproxy_requests_total", outcome="ok") == 2


class Sessions:
    """Hears the session of each request."""

    hears = (RequestEnded,)

    def __init__(self) -> None:
        self.heard: list[str | None] = []

    def hear(self, happening: Happening) -> None:
        assert isinstance(happening, RequestEnded)
        self.heard.append(happening.session)


async def session_heard(pair: Pair, sessions: Sessions, **members: Any) -> str | None:
    count = len(sessions.heard)
    await send(pair.service, SENT.requests[0], **members)
    await wait_until(lambda: len(sessions.heard) > count)
    return sessions.heard[-1]


async def test_sessions_are_looked_for_only_if_somebody_asks(file: pathlib.Path) -> None:
    sessions = Sessions()
    async with fleet(prefill=1, decode=1, consumers=[sessions]) as pair:
        assert await session_heard(pair, sessions, user="alice") is None
    async with fleet(prefill=1, decode=1, consumers=[sessions], recordings=Recordings(record=file)) as pair:
        assert await session_heard(pair, sessions, user="alice") == "alice"
        assert await session_heard(pair, sessions) is None


def test_a_place_that_will_not_do_is_refused_at_the_start(tmp_path: pathlib.Path) -> None:
    recordings = Recordings(record=tmp_path / "missing" / "traffic.jsonl")
    with pytest.raises(ConfigError, match=r"--record .*there is no directory"):
        assemble(Config(model="tiny", recordings=recordings))
