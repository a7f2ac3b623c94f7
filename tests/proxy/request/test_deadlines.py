"""Every wait ends in time: a phase that takes too long is tried elsewhere, a request that takes too long gets
504."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from proxy.errors import BadRequestError, ConnectTimeoutError, DeadlineError
from proxy.request.deadlines import NO_LIMIT, Goal, goal_of, time_limit
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from proxy.upstream.client import EngineAnswer, EngineClient

BAD_LIMITS = ["0", "-5", "1.5", "1e3", "soon", "", "٣", "9" * 13, "inf", "0x10", "1_000"]


@pytest.mark.parametrize(
    ("given", "configured_s", "limit_s"),
    [
        ((), 0.0, None),
        ((), 5.0, 5.0),
        (("1500",), 0.0, 1.5),
        (("1500",), 5.0, 1.5),
        (("9000",), 5.0, 5.0),
        ((" 20 ",), 0.0, 0.02),
        (("9" * 12,), 0.0, 999999999.999),
    ],
)
def test_the_shorter_limit_wins(given: tuple[str, ...], configured_s: float, limit_s: float | None) -> None:
    limit = time_limit(given, configured_s, 100.0)
    assert limit.seconds == limit_s
    assert limit.ends_at == (None if limit_s is None else 100.0 + limit_s)


@pytest.mark.parametrize("given", [*[(bad,) for bad in BAD_LIMITS], ("5", "5")])
def test_a_limit_that_is_none_is_the_clients_error(given: tuple[str, ...]) -> None:
    with pytest.raises(BadRequestError) as caught:
        time_limit(given, 0.0, 100.0)
    assert caught.value.param == "X-Request-Timeout-Ms"


def test_a_goal_is_read_as_a_limit_is() -> None:
    assert goal_of((), 100.0) is None
    assert goal_of((" 1500 ",), 100.0) == Goal(1500, 101.5)


@pytest.mark.parametrize("given", [*[(bad,) for bad in BAD_LIMITS], ("5", "5")])
def test_a_goal_that_is_none_is_the_clients_error(given: tuple[str, ...]) -> None:
    with pytest.raises(BadRequestError, match="must be a whole number of milliseconds above 0") as caught:
        goal_of(given, 100.0)
    assert caught.value.param == "X-Kvproxy-TTFT-Ms"


async def test_without_a_limit_nothing_is_cancelled() -> None:
    with NO_LIMIT.enforced():
        await asyncio.sleep(0)


# -- phases --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def deaf() -> Any:
    """An address that takes no more connections, so that connecting to it goes on for ever."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


async def test_connecting_takes_only_so_long() -> None:
    async with EngineClient(connect_timeout_s=0.1) as client:
        with deaf() as address, pytest.raises(ConnectTimeoutError, match=r"no connection within 0\.1 s"):
            await client.post(address, "/v1/completions", b"{}", [])


async def until_its_end(answer: EngineAnswer) -> None:
    while await answer.next_chunk(0.1):
        pass


async def test_a_stream_may_pause_only_so_long() -> None:
    async with StandIn() as engine, EngineClient() as client:
        engine.faults.add(Fault(kind="stall", path="/v1/c", after_bytes=100))
        body = b'{"prompt": "hello", "max_tokens": 30, "stream": true}'
        with await client.post(engine.address, "/v1/completions", body, []) as answer:
            assert await answer.next_chunk(20.0)
            with pytest.raises(DeadlineError, match=r"nothing for 0\.1 s"):
                await until_its_end(answer)
