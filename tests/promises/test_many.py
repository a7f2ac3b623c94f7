"""Two hundred streams at once through kvproxy, in front of 4 + 4 engines, all arrive whole and right."""

import asyncio

import aiohttp

from proxy.simulation import StandIn
from tests.helpers.service import ask, fleet, prose

STREAMS = 200


async def test_two_hundred_streams_at_once() -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        fleet(prefill=4, decode=4) as pair,
        StandIn() as plain,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        bodies = [
            {"prompt": prose(30, n), "max_tokens": 60, "ignore_eos": True, "stream": True, "temperature": 0}
            for n in range(STREAMS)
        ]
        path = "/v1/completions"
        answers = await asyncio.gather(*[ask(session, pair.service.url, path, body) for body in bodies])
        for body, answer in zip(bodies, answers, strict=True):
            assert answer.status == 200
            assert answer.events[-1] == "[DONE]"
            assert answer.text == (await ask(session, plain.url, path, body)).text
        await pair.service.settled()
        assert pair.engines.holds == 0
        for engines in (pair.engines.prefill, pair.engines.decode):
            assert all(any(seen.path == path for seen in engine.seen) for engine in engines)
