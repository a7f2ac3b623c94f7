"""The parts of a list in any order and at any pace: one id, one usage, one end, and never more in memory than
allowed."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import (
    BadRequestError,
    EngineFailedError,
    LegBrokenError,
    StreamFailedError,
    UnavailableError,
)
from proxy.happenings import Happening, Retried
from proxy.request import dialects
from proxy.request.body import Body
from proxy.request.generation import read_request
from proxy.request.sse import EventReader, event_of
from proxy.serving.ends import Ends
from proxy.serving.exchange import Call, Reply
from proxy.serving.lists import serve_list
from proxy.serving.lists.answers import AnswerMerger
from proxy.serving.lists.serving import ROOM, Room
from proxy.serving.lists.split import split
from proxy.serving.lists.streams import StreamMerger
from proxy.serving.lists.usage import summed
from proxy.serving.retry_budget import RetryBudget
from proxy.tasks import TaskOwner

MAX_RUNS = 3

# -- pure ---------------------------------------------------------------------------------------------------


def test_a_part_counts_as_large_as_what_is_sent_of_it() -> None:
    data = b'{"prompt": ["aaaaaaaaaaaaaaaaaaaa", "b"], "max_tokens": 5}'
    parts = split(read_request(dialects.COMPLETIONS, data, "tiny"))
    assert [part.body.value("prompt") for part in parts] == [["a" * 20], ["b"]]
    assert [part.prompt_count for part in parts] == [1, 1]
    for part in parts:
        assert abs(part.body.size_bytes - len(part.body.encoded())) < 10


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        ([{"a": 1, "b": None}, {"a": 2, "b": None}], {"a": 3, "b": None}),
        ([{"d": {"c": 1}}, {"d": {"c": 5}}], {"d": {"c": 6}}),
        ([{"d": {"c": 1}}, {"d": None}], {"d": None}),
        ([{"d": {"c": 1}}, {}], {}),
        ([{"d": {"c": 1, "x": 2}}, {"d": {"c": None}}], {"d": {"c": None}}),
    ],
)
def test_what_one_prompt_does_not_tell_is_not_known_of_all(
    usages: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    assert summed(usages) == expected


def answer(name: str, texts: list[str], **members: Any) -> bytes:
    choices = [{"index": i, "text": text, "x": [1]} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    whole = {"id": name, "model": "m", "choices": choices, "usage": usage} | members
    return json.dumps(whole, separators=(",", ":")).encode()


@given(st.permutations(range(4)), st.integers(1, 3))
def test_answers_may_come_in_any_order(order: list[int], sequences: int) -> None:
    merger = AnswerMerger(sequences)
    texts = [[f"{part}.{i}" for i in range(sequences)] for part in range(4)]
    for part in order:
        merger.add(part, answer(f"id-{part}", texts[part], metrics={"queue": 1}))
    expected = json.loads(answer("id-0", [text for part in texts for text in part], metrics=None))
    expected["usage"] = {"prompt_tokens": 8, "prompt_tokens_details": {"cached_tokens": 4}}
    assert list(json.loads(merger.merged()).items()) == list(expected.items())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"choices": 5}', b'{"choices": [{"text": ""}]}', b"\xff"]
)
def test_an_answer_that_is_no_completion_is_not_merged(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"choice|completion"):
        AnswerMerger(1).add(0, body)


@given(st.binary(max_size=6).map(bytes.hex), st.sampled_from([b"\n", b"\r\n"]), st.data())
def test_events_are_found_however_they_are_cut(text: str, newline: bytes, data: st.DataObject) -> None:
    datas = [text.encode() or b"x", b"{}", b"", b"[DONE]"]
    stream = b"".join((b"data: " + d if d else b": alive") + newline * 2 for d in datas)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = EventReader()
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [found for piece in pieces for found in reader.feed(piece)] == datas


def test_an_event_without_an_end_is_not_kept_for_ever() -> None:
    reader = EventReader()
    with pytest.raises(ValueError, match="event"):
        reader.feed(b"x" * (17 << 20))


def chunk(name: str, index: int, text: str, **members: Any) -> bytes:
    whole = {"id": name, "created": 7, "choices": [{"index": index, "text": text}]} | members
    return json.dumps(whole, separators=(",", ":")).encode()


def test_chunks_are_renumbered_and_the_usage_waits_for_the_last() -> None:
    merger = StreamMerger(2, sequences=2)
    merger.begin(chunk("first", 0, ""))
    usage = {"usage": {"prompt_tokens": 3}}
    assert merger.chunk(1, chunk("other", 1, "x", created=8, **usage)) == event_of(
        chunk("first", 3, "x", **usage)
    )
    assert merger.chunk(1, chunk("other", 0, "y", usage=None)) == event_of(chunk("first", 2, "y", usage=None))
    assert (
        merger.chunk(1, b'{"choices":[],"usage":{"prompt_tokens":3},"system_fingerprint":"b","metrics":{}}')
        == b""
    )
    assert (
        merger.chunk(0, b'{"choices":[],"usage":{"prompt_tokens":4},"system_fingerprint":"a","metrics":{}}')
        == b""
    )
    last = b'{"choices":[],"usage":{"prompt_tokens":7},"system_fingerprint":"a","id":"first","created":7}'
    assert merger.end() == event_of(last) + event_of(b"[DONE]")


def test_a_usage_that_not_all_engines_tell_is_not_told() -> None:
    merger = StreamMerger(2, sequences=1)
    merger.begin(chunk("first", 0, ""))
    assert merger.chunk(0, b'{"choices":[],"usage":{"prompt_tokens":3}}') == b""
    assert merger.end() == event_of(b"[DONE]")


@pytest.mark.parametrize(
    "data", [b"x", b"[]", b'{"choices": 1}', b'{"choices": [{"index": "x"}]}', b'{"choices": [{}]}']
)
def test_an_event_that_is_no_chunk_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"event|choice"):
        StreamMerger(1, 1).chunk(0, data)


# -- at their own pace --------------------------------------------------------------------------------------


class Retries:
    """Counts retries that are told."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, happening: Happening) -> None:
        assert isinstance(happening, Retried)
        self.count += 1


class Played:
    """A list whose parts are served by script: chunks of a stream come when the test says so."""

    def __init__(self, parts: int, *, stream: bool = True, room: Room = ROOM) -> None:
        self.room = room
        prompts = [str(n) for n in range(parts)]
        data = json.dumps({"prompt": prompts, "stream": stream}).encode()
        self.call = Call(read_request(dialects.COMPLETIONS, data, "tiny"), [], "leg", 0.0)
        self.tasks = TaskOwner("test")
        self.queues: list[asyncio.Queue[bytes | Exception | None]] = [asyncio.Queue(1) for _ in prompts]
        self.served: list[int] = []
        self.taken = 0
        self.closed: list[int] = []
        self.replies: dict[int, Reply | Exception] = {}
        self.retries = Retries()
        self.budget = RetryBudget(lambda: 0.0)
        self.avoided: list[set[str]] = []

    async def serve(self, call: Call, avoid: Collection[str]) -> Reply:
        self.avoided.append(set(avoid))
        part = int(call.request.body.value("prompt")[0])
        self.served.append(part)
        if part in self.replies:
            reply = self.replies[part]
            if isinstance(reply, Exception):
                raise reply
            return reply
        ends = Ends()
        ends.add(lambda: self.closed.append(part))
        headers = [("X-Part", str(part))]
        return Reply(200, headers, self._chunks(part), None, ends)

    async def _chunks(self, part: int) -> AsyncIterator[bytes]:
        while (data := await self.queues[part].get()) is not None:
            if isinstance(data, Exception):
                raise data
            self.taken += len(data)
            yield data

    def begin(self) -> "asyncio.Task[Reply]":
        reply = serve_list(
            self.call,
            self.serve,
            self.tasks,
            self.retries,
            self.budget,
            MAX_RUNS,
            self.room,
        )
        return TaskOwner("client").create(reply, name="request")

    async def say(self, part: int, text: str = "x", *, end: bool = False) -> None:
        done = b"data: [DONE]\n\n" if end else b""
        await self.queues[part].put(event_of(chunk(f"id-{part}", 0, text)) + done)
        if end:
            await self.queues[part].put(None)

    async def quiet(self) -> None:
        """Let everything run that can."""
        for _ in range(50):
            await asyncio.sleep(0)


async def drain(reply: Reply) -> bytes:
    assert not isinstance(reply.body, bytes)
    return b"".join([data async for data in reply.body])


async def test_nothing_goes_out_before_every_prompt_has_begun() -> None:
    played = Played(3)
    request = played.begin()
    await played.say(0, "a")
    await played.say(2, "c", end=True)
    await played.quiet()
    assert not request.done()
    await played.say(1, "b", end=True)
    reply = await request
    assert reply.headers == [("X-Part", "0")]
    await played.say(0, "d", end=True)
    data = await drain(reply)
    texts = [json.loads(d) for d in EventReader().feed(data) if d != b"[DONE]"]
    assert [(c["id"], c["choices"][0]["index"], c["choices"][0]["text"]) for c in texts] == [
        ("id-0", 0, "a"),
        ("id-0", 2, "c"),
        ("id-0", 1, "b"),
        ("id-0", 0, "d"),
    ]
    assert data.endswith(b"data: [DONE]\n\n")
    assert sorted(played.closed) == [0, 1, 2]
    reply.close()
    assert await played.tasks.drained(5)


async def test_a_comment_is_no_beginning() -> None:
    played = Played(2)
    request = played.begin()
    await played.say(0, end=True)
    await played.queues[1].put(b": keep-alive\n\n")
    await played.quiet()
    assert not request.done()
    await played.say(1, end=True)
    assert b"keep-alive" not in await drain(await request)
    assert await played.tasks.drained(5)


async def flood(played: Played, part: int) -> None:
    while True:
        await played.say(part, "y" * 1000)


async def test_a_stream_that_has_begun_is_read_ahead_so_far_and_no_further() -> None:
    played = Played(3, room=Room(waiting_bytes=50_000, queued_bytes=20_000, write_bytes=5_000))
    owner = TaskOwner("engines")
    request = played.begin()
    for part in (0, 1):
        owner.create(flood(played, part), name="flood")
    await played.say(2, "late " * 30_000)  # larger than all the room there is
    reply = await request
    before = -1
    while before != played.taken:
        before = played.taken
        await played.quiet()
    assert 50_000 < played.taken < 50_000 + 150_000 + 10_000
    assert not isinstance(reply.body, bytes)
    got = 0
    async for data in reply.body:  # a client that reads again lets engines go on, at its own pace
        got += len(data)
        assert played.taken - got < 50_000 + 150_000 + 10_000
        if got > 1_000_000:
            break
    await played.quiet()
    assert played.taken - got < 20_000 + 5_000 + 10_000
    reply.close()
    await owner.close()
    assert await played.tasks.drained(5)
    assert sorted(played.closed) == [0, 1, 2]


@pytest.mark.parametrize(
    "failure", [UnavailableError("no"), Reply(429, [], b"full", None), RuntimeError("a bug")]
)
async def test_one_part_that_fails_ends_all(failure: Any) -> None:
    played = Played(3)
    played.replies[1] = failure
    request = played.begin()
    if isinstance(failure, Reply):
        assert (await request) is failure
    else:
        with pytest.raises(type(failure)):
            await request
    assert await played.tasks.drained(5)
    assert len(played.closed) == len(played.served) - 1


async def test_a_part_that_breaks_again_and_again_before_the_start_fails_all() -> None:
    played = Played(2)
    request = played.begin()
    for _ in range(MAX_RUNS):
        await played.say(0)
        await played.queues[0].put(LegBrokenError("engine", "gone"))
    with pytest.raises(EngineFailedError, match="gone"):
        await request
    assert played.served.count(0) == MAX_RUNS
    assert played.retries.count == MAX_RUNS - 1
    assert sorted(played.avoided, key=len)[-2:] == [{"engine"}] * 2
    assert played.budget.retries == 0
    assert await played.tasks.drained(5)


async def test_a_part_is_not_served_anew_without_budget() -> None:
    played = Played(2)
    played.budget.retries = played.budget.most
    request = played.begin()
    await played.say(0)
    await played.queues[0].put(LegBrokenError("engine", "gone"))
    with pytest.raises(EngineFailedError, match="gone"):
        await request
    assert played.served.count(0) == 1
    assert await played.tasks.drained(5)


@pytest.mark.parametrize("what", [b'data: {"error": {"code": 500}}\n\n', b"data: [DONE]\n\n", None])
async def test_a_part_that_breaks_off_before_the_start_begins_anew_without_a_trace(
    what: bytes | None,
) -> None:
    played = Played(2)
    request = played.begin()
    await played.say(0, "lost") if what != b"data: [DONE]\n\n" else None
    if what is not None:
        await played.queues[0].put(what)
    await played.queues[0].put(None)
    await played.say(0, "whole", end=True)
    await played.say(1, "other", end=True)
    data = await drain(await request)
    assert b"lost" not in data
    assert data.count(b"whole") == data.count(b"other") == data.count(b"[DONE]") == 1
    assert await played.tasks.drained(5)


async def test_answers_that_cannot_be_read_are_an_engines_failure() -> None:
    played = Played(2, stream=False)
    played.replies = {0: Reply(200, [], answer("a", ["x"]), None), 1: Reply(200, [], b"{}", None)}
    with pytest.raises(EngineFailedError, match="not an answer"):
        await played.begin()
    assert played.served.count(1) == MAX_RUNS
    assert await played.tasks.drained(5)


async def test_whole_answers_are_one_answer() -> None:
    played = Played(2, stream=False)
    played.replies = {part: Reply(200, [("X", str(part))], answer("a", ["x"]), None) for part in range(2)}
    reply = await played.begin()
    assert isinstance(reply.body, bytes)
    assert [choice["index"] for choice in json.loads(reply.body)["choices"]] == [0, 1]
    assert (reply.headers, reply.decision) == ([("X", "0")], None)


async def test_a_part_that_breaks_off_after_the_start_ends_all() -> None:
    played = Played(2)
    request = played.begin()
    await played.say(0, "a")
    await played.say(1, "b")
    reply = await request
    await played.queues[1].put(None)
    with pytest.raises(LegBrokenError, match="last event"):
        await drain(reply)
    assert await played.tasks.drained(5)
    assert sorted(played.closed) == [0, 1]


async def test_an_engines_error_in_a_stream_that_has_begun_cuts_all() -> None:
    played = Played(2)
    request = played.begin()
    await played.say(0, "a")
    await played.say(1, "b")
    reply = await request
    await played.queues[1].put(StreamFailedError("b:1", 500, b"body", b"event"))
    with pytest.raises(StreamFailedError) as caught:
        await drain(reply)
    assert caught.value.event == b"event"
    reply.close()
    assert await played.tasks.drained(5)
    assert sorted(played.closed) == [0, 1]


@pytest.mark.parametrize("status", [400, 501])
async def test_a_clients_own_error_in_a_stream_before_the_start_is_the_answer_to_all(status: int) -> None:
    played = Played(2)
    request = played.begin()
    await played.say(0, "a")
    await played.queues[0].put(StreamFailedError("b:1", status, b"body", b"event"))
    reply = await request
    assert (reply.status, reply.body) == (status, b"body")
    reply.close()
    assert await played.tasks.drained(5)
    assert (played.served, played.retries.count) == ([0, 1], 0)


async def test_a_client_that_leaves_before_the_start_ends_all() -> None:
    played = Played(3)
    request = played.begin()
    await played.say(1)
    await played.quiet()
    request.cancel()
    await asyncio.wait({request})
    assert request.cancelled()
    assert await played.tasks.drained(5)
    assert sorted(played.closed) == [0, 1, 2]


def test_bodies_know_their_items() -> None:
    body = Body.parse(b'{"a": [ 1, "x" ], "b": 5}')
    assert [bytes(item) for item in body.raw_items("a")] == [b"1", b'"x"']
    with pytest.raises(BadRequestError):
        body.raw_items("b")
