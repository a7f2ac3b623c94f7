"""Cheap engines for a router to serve: one process listens on many ports and answers at once.

python -m scripts.workshop.bench.many_engines PORT:EVENTS:REPLAY ...
"""

import argparse
import asyncio
import json
import time

from aiohttp import web

MODEL = "tiny"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engines", nargs="+", help="PORT:EVENTS:REPLAY")
    ports = [tuple(map(int, engine.split(":"))) for engine in parser.parse_args().engines]
    asyncio.run(_serve({port: (events, replay) for port, events, replay in ports}))


async def _serve(engines: dict[int, tuple[int, int]]) -> None:
    async def sources(request: web.Request) -> web.Response:
        transport = request.transport
        port = transport.get_extra_info("sockname")[1] if transport is not None else 0
        events, replay = engines[port]
        told = {"endpoint": f"tcp://*:{events}", "replay_endpoint": f"tcp://*:{replay}", "topic": ""}
        return web.json_response({"0": told})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def complete(request: web.Request) -> web.Response:
        prompt = len(json.loads(await request.read())["prompt"])
        return web.json_response(
            {
                "id": "cmpl-1",
                "object": "text_completion",
                "created": int(time.time()),
                "model": MODEL,
                "choices": [{"index": 0, "text": "x", "logprobs": None, "finish_reason": "length"}],
                "usage": {"prompt_tokens": prompt, "completion_tokens": 1, "total_tokens": prompt + 1},
            }
        )

    app = web.Application(client_max_size=1 << 26)
    app.router.add_get("/kv_event_sources", sources)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    for port in engines:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
