"""When kvproxy's resolver is silent, engines are reached at the addresses known before, none is blamed."""

import asyncio
import socket
import threading
import time

import pytest

from proxy.errors import ConnectFailedError, OurTroubleError, UnresolvedError
from proxy.simulation import StandIn
from proxy.upstream.client import EngineClient
from proxy.upstream.names import Names, ResolverError
from tests.helpers.resolver import Resolver, resolver
from tests.helpers.service import wait_until

__all__ = ["resolver"]

PATH = "/v1/completions"
BODY = b'{"prompt": "hello", "max_tokens": 3}'


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def found(names: Names, host: str = "a.test") -> list[str]:
    return [each[4][0] for each in await names.resolve(host, 80)]


async def test_a_name_is_asked_about_once_and_then_beside_its_use(resolver: Resolver) -> None:
    clock = Clock()
    resolver.says["a.test"] = ["127.0.0.1"]
    names = Names(clock=clock, fresh_s=5.0)
    first = await asyncio.gather(*(found(names) for _ in range(5)))
    assert (first, resolver.asked) == ([["127.0.0.1"]] * 5, ["a.test"])
    clock.now = 4.9
    assert await found(names) == ["127.0.0.1"]
    assert resolver.asked == ["a.test"]
    resolver.says["a.test"] = ["127.0.0.2"]
    resolver.fall_silent()
    clock.now = 5.0
    assert await found(names) == ["127.0.0.1"]  # nobody waits for the new one
    await wait_until(lambda: len(resolver.asked) == 2, "a second question")
    resolver.speak()
    await wait_until(lambda: not names._asking, "its answer")
    assert await found(names) == ["127.0.0.2"]
    await names.close()


@pytest.mark.parametrize("error", [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_NONAME])
async def test_an_address_that_was_good_is_kept_whatever_is_said_later(
    resolver: Resolver, error: int
) -> None:
    clock = Clock()
    resolver.says["a.test"] = ["127.0.0.1"]
    names = Names(clock=clock)
    await found(names)
    resolver.says["a.test"] = error
    for _ in range(3):
        clock.now += 1000.0
        assert await found(names) == ["127.0.0.1"]
        await wait_until(lambda: not names._asking, "an answer")
    assert len(resolver.asked) == 4
    await names.close()


async def test_a_name_that_never_had_an_address(resolver: Resolver) -> None:
    names = Names(silent_s=0.05)
    with pytest.raises(socket.gaierror):
        await found(names)
    resolver.says["a.test"] = socket.EAI_AGAIN
    with pytest.raises(ResolverError, match="says: so it is"):
        await found(names)
    resolver.fall_silent()
    with pytest.raises(ResolverError, match="does not answer"):
        await found(names)
    resolver.says["a.test"] = ["127.0.0.1"]
    resolver.speak()
    await wait_until(lambda: not names._asking, "an answer")
    assert await found(names) == ["127.0.0.1"]
    await names.close()


async def test_addresses_take_turns(resolver: Resolver) -> None:
    resolver.says["a.test"] = ["127.0.0.1", "127.0.0.2"]
    names = Names()
    assert {(await found(names))[0] for _ in range(2)} == {"127.0.0.1", "127.0.0.2"}
    await names.close()


async def test_a_name_that_nobody_uses_is_forgotten(resolver: Resolver) -> None:
    clock = Clock()
    resolver.says |= {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]}
    names = Names(clock=clock)
    await found(names)
    clock.now = 3601.0
    await found(names, "b.test")
    assert [host for host, _ in names._known] == ["b.test"]
    await names.close()


async def test_closing_does_not_wait_for_a_silent_resolver(resolver: Resolver) -> None:
    resolver.fall_silent()
    names = Names(silent_s=0.05)
    with pytest.raises(ResolverError):
        await found(names)
    async with asyncio.timeout(5):
        await names.close()
    assert all(t.daemon for t in threading.enumerate() if t.name.startswith("address of"))


async def test_a_connection_that_fails_has_its_name_looked_up_anew(resolver: Resolver) -> None:
    async with StandIn() as engine, EngineClient() as client:
        port = engine.address.rpartition(":")[2]
        resolver.says["a.test"] = ["127.0.0.9"]
        with pytest.raises(ConnectFailedError, match="connection refused"):
            await client.post(f"a.test:{port}", PATH, BODY, [])
        resolver.says["a.test"] = ["127.0.0.1"]
        with pytest.raises(ConnectFailedError, match="connection refused"):
            await client.post(f"a.test:{port}", PATH, BODY, [])
        await wait_until(lambda: not client._names._asking, "the new address")
        with await client.post(f"a.test:{port}", PATH, BODY, []) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("stalls_s", [0.0, 0.4])
async def test_a_silent_resolver_is_our_own_trouble(resolver: Resolver, stalls_s: float) -> None:
    """Also where kvproxy itself stalls meanwhile, so that the time to connect is over as well."""
    resolver.fall_silent()
    async with EngineClient(connect_timeout_s=0.2) as client:
        asyncio.get_running_loop().call_later(0.05, time.sleep, stalls_s)
        with pytest.raises(
            UnresolvedError, match="its address is not known: kvproxy's resolver does not answer"
        ):
            await client.post("a.test:1", PATH, BODY, [])
    assert issubclass(UnresolvedError, OurTroubleError)
