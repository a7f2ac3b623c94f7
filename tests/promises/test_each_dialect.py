"""What befalls a stream is told in the words of its dialect, and leaves nothing behind, whichever that is."""

import asyncio
import json
from typing import Any

import aiohttp

from proxy.edge.app import shut_down
from proxy.errors import EngineFailedError, GatewayTimeoutError, RequestError, UnavailableError
from proxy.simulation import StandIn
from proxy.simulation.live.faults import Fault
from tests.helpers.dialects import Spoken, each_dialect
from tests.helpers.service import UNHURRIED, InOrder, Pair, ask, fleet, prose, wait_until


async def heard(
    pair: Pair, spoken: Spoken, body: dict[str, Any], begun: asyncio.Event | None = None, **headers: str
) -> bytes:
    """All that comes of a stream that is cut; `begun` is set once some of it is there."""
    url, received = pair.service.url + spoken.path, bytearray()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        async with pair.service.session.post(url, json=body, headers=named) as response:
            assert response.status == 200
            async for chunk in response.content.iter_any():
                received.extend(chunk)
                if begun is not None:
                    begun.set()
    except aiohttp.ClientPayloadError:
        return bytes(received)
    raise AssertionError(f"the stream ended as a complete one: {received!r}")


def assert_cut_with(spoken: Spoken, stream: bytes, error: RequestError) -> None:
    """Whether the last event is the error, in the words of the dialect."""
    assert not spoken.is_complete(stream)
    told = spoken.dialect.error(error)
    last = json.loads(spoken.datas(stream)[-1])
    assert last.keys() == told.keys()
    assert last["error"].keys() == told["error"].keys()
    assert last["error"]["type"] == told["error"]["type"]
    assert str(error) in last["error"]["message"]


@each_dialect
async def test_what_befalls_a_stream(spoken: Spoken) -> None:
    async with fleet(1, 2, policy=InOrder(), stand_in=UNHURRIED) as pair:
        first = min(pair.engines.decode, key=lambda engine: engine.address)
        body = spoken.body(prose(60), 40, stream=True, **spoken.unlimited)

        def strikes(kind: Any, **how: Any) -> None:
            first.faults.add(Fault(kind=kind, path=spoken.path, times=1, **how))

        # It fails before anything was generated: another engine answers.
        async with StandIn() as plain:
            alone = await ask(pair.service.session, plain.url, spoken.path, body)
        strikes("error", status=500, after_chunks=0)
        answer = await pair.service.ask(spoken.path, body)
        assert (answer.status, spoken.text(answer.body)) == (200, spoken.text(alone.body))
        assert spoken.is_complete(answer.body)
        assert await pair.service.metric("kvproxy_retries_total", phase="decode", reason="status") == 1
        # It breaks off later.
        strikes("cut", after_bytes=1500)
        assert_cut_with(spoken, await heard(pair, spoken, body), EngineFailedError(""))
        # Its time is over.
        strikes("stall", after_bytes=1500)
        late = await heard(pair, spoken, body, X_Request_Timeout_Ms="1500")
        assert_cut_with(spoken, late, GatewayTimeoutError(""))
        # Its client leaves.
        strikes("stall", after_bytes=1500)
        async with pair.service.session.post(pair.service.url + spoken.path, json=body) as response:
            assert await response.content.readany()
            response.close()
        await pair.service.settled()
        await wait_until(lambda: not pair.engines.holds, "the end of all holds")
        # kvproxy ends.
        strikes("stall", after_bytes=1500)
        begun = asyncio.Event()
        running = asyncio.get_running_loop().create_task(heard(pair, spoken, body, begun), name="stream")
        await begun.wait()
        await shut_down(pair.service.runner, 0.0, asyncio.Event())
        assert_cut_with(spoken, await running, UnavailableError("kvproxy is shutting down"))
        assert not pair.engines.holds
