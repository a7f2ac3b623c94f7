"""A stream begins with what was generated, ends with its mark, and does not live on comments."""

import asyncio
import json
from collections.abc import Sequence
from typing import Protocol

import pytest

from proxy.errors import DeadlineError, LegBrokenError, StreamFailedError
from proxy.request.dialects import CHAT
from proxy.scheduling.decision import Decision, Pick
from proxy.serving.exchange import HELD, EngineStream, Held, Take, as_unary

ROLE = (
    b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": '
    b"null}]}\n\n"
)
TEXT = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n'
COMMENT = b": keep-alive\n\n"
ERROR = b'data: {"error": {"message": "m", "code": 500}}\n\n'
DONE = b"data: [DONE]\n\n"
SILENCE = None


class Played:
    """An engine's answer by script: pieces, errors, and silence for as long as anybody waits."""

    instance = "engine:1"
    status = 200
    is_event_stream = True

    def __init__(self, *script: bytes | Exception | None) -> None:
        self.headers: list[tuple[str, str]] = []
        self.script = list(script)
        self.asked = 0

    async def read(self, max_bytes: int | None = None) -> bytes:
        raise AssertionError("a stream is not read whole")

    async def next_chunk(self, limit_s: float | None = None) -> bytes:
        self.asked += 1
        said = self.script.pop(0) if self.script else b""
        if said is SILENCE:
            try:
                async with asyncio.timeout(limit_s):
                    await asyncio.Event().wait()
            except TimeoutError:
                raise DeadlineError(self.instance, f"nothing for {limit_s} s") from None
        if isinstance(said, Exception):
            raise said
        return said or b""

    async def pour(self, take: Take, limit_s: float) -> None:
        while self.script and (self.script[0] is SILENCE or isinstance(self.script[0], bytes)):
            if not take(await self.next_chunk(limit_s)):
                return

    def close(self) -> None:
        pass


class Passed(Protocol):
    """Has the runs of a stream that has begun, at the pace of a client that needs so long for each."""

    async def __call__(
        self, stream: EngineStream, runs: list[bytes] | None = None, pause_s: float = 0.0
    ) -> list[bytes]: ...


async def one_by_one(
    stream: EngineStream, runs: list[bytes] | None = None, pause_s: float = 0.0
) -> list[bytes]:
    got = [] if runs is None else runs
    while run := await stream.next():
        got.append(run)
        await asyncio.sleep(pause_s)
    return got


async def poured(stream: EngineStream, runs: list[bytes] | None = None, pause_s: float = 0.0) -> list[bytes]:
    got = [] if runs is None else runs

    def take(run: bytes) -> bool:
        got.append(run)
        return not pause_s

    while run := await stream.next():
        got.append(run)
        await asyncio.sleep(pause_s)
        await stream.pour(take)
        await asyncio.sleep(pause_s)
    return got


@pytest.fixture(params=[one_by_one, poured])
def passed(request: pytest.FixtureRequest) -> Passed:
    way: Passed = request.param
    return way


@pytest.mark.parametrize(
    ("pieces", "runs"),
    [
        ([TEXT, DONE], [TEXT, DONE]),
        ([ROLE, TEXT, DONE], [ROLE + TEXT, DONE]),
        (
            [COMMENT, ROLE + ROLE, USAGE, TEXT + TEXT, DONE],
            [COMMENT + ROLE + ROLE + USAGE + TEXT + TEXT, DONE],
        ),
        ([ROLE[:20], ROLE[20:] + TEXT[:9], TEXT[9:], TEXT + DONE], [ROLE + TEXT, TEXT + DONE]),
        ([ROLE + TEXT + DONE], [ROLE + TEXT + DONE]),
        ([ROLE, DONE], [ROLE + DONE]),
        ([b"data: no json\n\n", DONE], [b"data: no json\n\n", DONE]),
        ([TEXT, COMMENT, TEXT, DONE], [TEXT, COMMENT, TEXT, DONE]),
        ([TEXT, b"data:[DONE]"], [TEXT, b"data:[DONE]\n\n"]),
    ],
)
async def test_events_held_back_go_out_with_the_first_generated_one(
    pieces: Sequence[bytes], runs: list[bytes], passed: Passed
) -> None:
    stream = EngineStream(Played(*pieces), 10, CHAT)
    assert await stream.begin() is None
    assert await passed(stream) == runs


@pytest.mark.parametrize(
    "pieces",
    [[ERROR], [ROLE + ERROR + DONE], [COMMENT, ROLE, ROLE, USAGE, ERROR, DONE], [ROLE, ERROR.rstrip()]],
)
async def test_a_failure_before_anything_is_no_beginning(pieces: Sequence[bytes]) -> None:
    failure = await EngineStream(Played(*pieces), 10, CHAT).begin()
    assert failure is not None
    assert (failure.status, failure.body) == (500, ERROR[6:-2])


@pytest.mark.parametrize("pieces", [[], [ROLE], [COMMENT], [ROLE, TEXT[:-3]], [ROLE, ERROR[:-9]]])
async def test_a_stream_that_ends_before_anything_is_broken(pieces: Sequence[bytes]) -> None:
    with pytest.raises(LegBrokenError, match="before its first event"):
        await EngineStream(Played(*pieces), 10, CHAT).begin()


@pytest.mark.parametrize(
    "pieces", [[TEXT, TEXT, ERROR, DONE], [TEXT, TEXT + ERROR + DONE], [TEXT + TEXT + ERROR]]
)
async def test_a_failure_later_passes_what_came_and_no_end(pieces: Sequence[bytes], passed: Passed) -> None:
    stream = EngineStream(Played(*pieces), 10, CHAT)
    assert await stream.begin() is None
    got: list[bytes] = []
    with pytest.raises(StreamFailedError) as caught:
        await passed(stream, got)
    assert b"".join(got) == TEXT + TEXT
    assert (caught.value.event, caught.value.status, caught.value.clients_own) == (ERROR, 500, False)


@pytest.mark.parametrize("pieces", [[TEXT], [TEXT, TEXT, TEXT[:10]], [TEXT, COMMENT]])
async def test_a_stream_without_its_mark_is_broken(pieces: Sequence[bytes], passed: Passed) -> None:
    stream = EngineStream(Played(*pieces), 10, CHAT)
    assert await stream.begin() is None
    with pytest.raises(LegBrokenError, match="without its last event"):
        await passed(stream)


@pytest.mark.parametrize(
    "late", [COMMENT, b"\n\n", ERROR, TEXT, SILENCE, LegBrokenError("engine:1", "reset"), b"\xff" * 100]
)
async def test_after_its_mark_a_stream_is_complete_whatever_comes(
    late: bytes | Exception | None, passed: Passed
) -> None:
    played = Played(TEXT, DONE, late, SILENCE)
    stream = EngineStream(played, 10, CHAT, late_close_s=0.01)
    assert await stream.begin() is None
    assert await passed(stream) == [TEXT, DONE]
    assert played.asked == 2
    await stream.drain()
    assert await stream.next() == b""


@pytest.mark.parametrize("held", [Held(events=3), Held(size_bytes=3 * len(ROLE)), Held(seconds=0.01)])
async def test_the_events_held_back_are_bounded(held: Held, passed: Passed) -> None:
    in_time = held.seconds == HELD.seconds
    script = [ROLE] * 4 if in_time else [ROLE, SILENCE]
    stream = EngineStream(Played(*script, ERROR), 10, CHAT, held=held)
    assert await stream.begin() is None
    got: list[bytes] = []
    with pytest.raises(StreamFailedError):
        await passed(stream, got)
    assert b"".join(got) == (ROLE * 4 if in_time else ROLE)


async def test_comments_alone_are_waited_for_without_a_bound_of_time() -> None:
    """An engine that has not begun to generate may say so for long; the leg's deadline ends that."""
    stream = EngineStream(Played(COMMENT, COMMENT, ROLE + ERROR), 10, CHAT, held=Held(seconds=0.0))
    assert await stream.begin() is not None


async def test_comments_put_off_no_deadline(passed: Passed) -> None:
    class Dripping(Played):
        async def next_chunk(self, limit_s: float | None = None) -> bytes:
            if self.script:
                return await super().next_chunk(limit_s)
            if limit_s is not None and limit_s < 0.02:
                raise DeadlineError(self.instance, "nothing")
            await asyncio.sleep(0.02)
            return COMMENT

    stream = EngineStream(Dripping(TEXT, COMMENT[:5], COMMENT[5:]), 0.2, CHAT)
    assert await stream.begin() is None
    with pytest.raises(DeadlineError, match=r"nothing but comments for 0.2 s"):
        async with asyncio.timeout(10):
            await passed(stream)


async def test_data_puts_off_the_deadline_and_a_slow_reader_uses_none_of_it(passed: Passed) -> None:
    limits: list[float] = []

    class Noting(Played):
        async def next_chunk(self, limit_s: float | None = None) -> bytes:
            if limit_s is not None:
                limits.append(limit_s)
            await asyncio.sleep(0.01)
            return await super().next_chunk(limit_s)

    stream = EngineStream(Noting(TEXT, COMMENT, COMMENT, TEXT, TEXT, DONE), 600, CHAT)
    assert await stream.begin() is None
    await passed(stream, pause_s=0.05)
    assert limits[0] == 600
    assert 600 > limits[1] > limits[2] > 500
    assert limits[3:] == [600, 600]


async def test_an_event_without_an_end_breaks_the_leg() -> None:
    with pytest.raises(LegBrokenError, match="bytes"):
        await EngineStream(Played(b"x" * (17 << 20)), 10, CHAT).begin()


PARAMS = b'"kv_transfer_params": {"remote_host": "10.0.0.1"}'


async def test_events_held_back_show_no_more_than_those_passed_on(passed: Passed) -> None:
    role = ROLE.replace(b'{"choices"', b"{" + PARAMS + b', "choices"', 1)
    assert PARAMS in role
    stream = EngineStream(Played(role, TEXT, DONE), 10, CHAT)
    assert await stream.begin() is None
    run = b"".join(await passed(stream))
    assert PARAMS not in run
    assert (run.count(b'"role"'), run.endswith(TEXT + DONE)) == (1, True)


async def test_nor_does_the_answer_that_is_made_of_an_early_failure() -> None:
    error = ERROR.replace(b'{"error"', b"{" + PARAMS + b', "error"', 1)
    played = Played(error)
    failure = await EngineStream(played, 10, CHAT).begin()
    assert failure is not None
    picked = Pick(None, ())
    body = as_unary(played, failure, Decision("p", None, picked, picked)).body
    assert json.loads(body) == {"error": {"message": "m", "code": 500}}  # type: ignore[arg-type]  # not a stream


@pytest.mark.parametrize(
    ("status", "own"), [(400, True), (404, True), (429, False), (500, False), (501, True), (503, False)]
)
def test_whose_fault_an_error_in_a_stream_is(status: int, *, own: bool) -> None:
    assert StreamFailedError("engine:1", status, b"", b"").clients_own is own
