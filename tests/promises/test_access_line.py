"""The access log's line of a request says what was tried, why it was refused, and how its stream ended."""

import asyncio
import logging
import re
from typing import Any

import pytest

from proxy.config import Admission, Deadlines
from proxy.simulation.live.faults import Fault
from tests.helpers.service import InOrder, Pair, fleet, wait_until


async def line(caplog: pytest.LogCaptureFixture, path: str = "/v1/completions") -> dict[str, str]:
    """What the one line of a request to a path notes."""
    await wait_until(lambda: any(path in m for m in caplog.messages), "its line")
    (found,) = [m for m in caplog.messages if f"POST {path} " in m]
    return {n: a or b for n, a, b in re.findall(r'(\w+)=(?:"([^"]*)"|(\S+))', found)}


def bad(pair: Pair, engine: int, **fault: Any) -> str:
    pair.engines.decode[engine].faults.add(Fault(**({"path": "/v1/c"} | fault)))
    return pair.engines.decode[engine].address


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_attempts_that_failed_are_named(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(policy=InOrder(), kv_events=False) as pair:
        first = min((0, 1), key=lambda n: pair.engines.decode[n].address)
        address = bad(pair, first, kind="status", status=500, times=1)
        assert (await pair.service.complete("hello", stream=True)).status == 200
        notes = await line(caplog)
        assert (notes["attempts"], notes["failed"]) == ("2", f"{address}:status")
        assert notes["outcome"] == "ok"
        assert re.fullmatch(r"\d+ms", notes["ttfb"])


async def test_a_request_without_trouble_has_a_short_line(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        await pair.service.complete("hello")
        assert not {"attempts", "failed", "ttfb", "reason", "cut", "prompts"} & (await line(caplog)).keys()


async def test_probes_have_no_line_and_one_without_notes_ends_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        for path in ("/ping", "/ping/", "/v1/nothing"):
            async with pair.service.session.post(pair.service.url + path, json={}):
                pass
        await wait_until(lambda: any("nothing" in m for m in caplog.messages), "its line")
    [line] = [m for m in caplog.messages if m.startswith("POST ")]
    assert re.fullmatch(r"POST /v1/nothing 404 \d+\.\dms id=\w+", line)


@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ("0af7-651916cd.43_dd", "0af7-651916cd.43_dd"),
        ("a:b/c", "a-b-c"),
        ('"', "-"),
        ('x"outcome=ok', "x-outcome-ok"),
        ("\\x1b[31m$(id)`;<b>'", "-x1b-31m--id----b--"),
        ("z" * 256, "z" * 256),
    ],
)
async def test_a_clients_id_is_one_plain_word_of_the_line(
    given: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        answer = await pair.service.ask(
            "/v1/completions", {"prompt": "x", "max_tokens": 1}, X_Request_Id=given
        )
        assert answer.headers["X-Request-Id"] == given
        (found,) = [m for m in caplog.messages if "POST /v1/completions " in m]
        assert f" id={logged} leg={logged[:64]}-" in found
        assert found.count("outcome=") == 1


@pytest.mark.parametrize("given", ["trace/1", None])
@pytest.mark.parametrize("stream", [True, False])
async def test_one_id_is_in_the_line_in_the_legs_and_in_the_answer(
    given: str | None, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        named = {} if given is None else {"X_Request_Id": given}
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": stream}
        answer = await pair.service.ask("/v1/chat/completions", body, **named)
        notes = await line(caplog, "/v1/chat/completions")
        assert notes["id"] == answer.headers["X-Request-Id"].replace("/", "-")
        assert re.fullmatch(r"trace-1-[0-9a-f]{12}", notes["leg"]) if given else "leg" not in notes
        leg = notes.get("leg", notes["id"])
        told = answer.events[0]["id"] if stream else answer.json["id"]
        assert told == f"chatcmpl-{leg}"
        legs = [s for engine in pair.engines.all for s in engine.seen if s.path == "/v1/chat/completions"]
        assert [s.headers["X-Request-Id"] for s in legs] == [leg] * 2


async def test_requests_with_the_same_id_have_legs_of_their_own() -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        body = {"prompt": ["one", "two"], "max_tokens": 3}
        twins = [pair.service.ask("/v1/completions", body, X_Request_Id="same") for _ in range(5)]
        assert {answer.status for answer in await asyncio.gather(*twins)} == {200}
        seen = [s.headers["X-Request-Id"] for s in pair.engines.decode[0].seen if s.path == "/v1/completions"]
        assert len(set(seen)) == 10
        assert all(re.fullmatch(r"same-[0-9a-f]{12}(-1)?", leg) for leg in seen)


async def test_a_request_that_reached_no_engine_has_no_leg_in_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        body = {"prompt": "hello", "n": 0}
        assert (await pair.service.ask("/v1/completions", body, X_Request_Id="mine")).status == 400
        assert "leg" not in await line(caplog)


async def test_a_list_of_prompts_says_how_many(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False) as pair:
        await pair.service.complete(["one", "two"])
        assert (await line(caplog))["prompts"] == "2"


async def test_a_refusal_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, admission=Admission(queue_timeout_s=0.1)) as pair:
        await pair.service.admin("/instances/drain", {"instance": pair.engines.decode[0].address})
        assert (await pair.service.complete("hello")).status == 503
        assert (await line(caplog))["reason"] == "no_engine"


@pytest.mark.parametrize(
    ("fault", "outcome", "words"),
    [
        ("cut", "cut", "the engine's stream was cut off (its connection ended early)"),
        ("stall", "timeout", "sent nothing for"),
    ],
)
async def test_a_stream_that_was_cut_says_how_it_ended_on_its_own_line(
    fault: str, outcome: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, deadlines=Deadlines(chunk_s=2.0)) as pair:
        bad(pair, 0, kind=fault, after_bytes=1500)
        with pytest.raises(Exception, match="ayload"):
            await pair.service.complete("hello", stream=True, max_tokens=100, ignore_eos=True)
        notes = await line(caplog)
        assert notes["outcome"] == outcome
        assert words in notes["cut"]
        assert await pair.service.metric("kvproxy_requests_total", outcome=outcome) == 1
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING and "cut" in r.getMessage()]
        assert not warnings  # a client can bring this about as often as it likes


async def test_an_open_circuit_says_what_failed_last(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(policy=InOrder(), kv_events=False) as pair:
        first = min((0, 1), key=lambda n: pair.engines.decode[n].address)
        address = bad(pair, first, kind="status", status=500)
        for n in range(3):
            assert (await pair.service.complete(f"hello {n}")).status == 200
        await wait_until(lambda: any("circuit open" in m for m in caplog.messages), "an open circuit")
        (opened,) = [m for m in caplog.messages if "circuit open" in m]
        assert address in opened
        assert "(last: status 500)" in opened


async def test_stranded_blocks_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet(prefill=1, decode=1, kv_events=False, admission=Admission(queue_timeout_s=0.2)) as pair:
        bad(pair, 0, kind="hang")
        running = asyncio.get_running_loop().create_task(pair.service.complete("hello"))
        await wait_until(
            lambda: any(s.path == "/v1/completions" for s in pair.engines.decode[0].seen), "a leg"
        )
        await pair.engines.decode[0].stop()
        await asyncio.wait({running})
        await pair.service.settled()
        assert await pair.service.metric("kvproxy_holds_total", end="stranded") >= 1
        assert "prefilled blocks of 1 prompts were not given back" in caplog.text
