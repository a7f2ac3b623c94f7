"""`create_app` is the one place that assembles kvproxy; whatever has a lifetime is opened and closed here, in order."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from kvevents.prefix_index import PrefixIndex
from proxy.app_keys import CONFIG, DIRECTOR, FLEET, METRICS, STOPPING, WATCH
from proxy.config import Config
from proxy.connectors import CONNECTORS
from proxy.director import Director
from proxy.discovery import EventFeeds, FleetWatch
from proxy.errors import ConfigError
from proxy.handlers import admin, observe, openai, openapi
from proxy.instances import Fleet
from proxy.metrics import FleetCollector, Metrics
from proxy.middlewares import IN_FLIGHT_KEY, InFlight, add_request_id, edge
from proxy.placement import Placement
from proxy.scheduling.policies import load_policy
from proxy.scheduling.types import Policy
from proxy.tasks import TaskOwner
from proxy.tokenizing import EngineTokenizer
from proxy.upstream.client import EngineClient

CLEANUP_S = 5.0
"""How long releases of holds may take when the app closes, after its last request."""


def create_app(config: Config, policy: Policy | None = None) -> web.Application:
    """The application of `config`; `policy` replaces the configured one. Raises ConfigError.

    It watches its engines while it runs; `app[WATCH].fatal` tells if the process should rather end.
    """
    if config.connector not in CONNECTORS:
        raise ConfigError(
            f"--connector {config.connector!r} is not known: give one of {', '.join(CONNECTORS)}"
        )
    chosen_policy = policy or load_policy(config.policy)
    if policy is not None:
        config = msgspec.structs.replace(config, policy=type(policy).__name__)
    app = web.Application(middlewares=[edge], client_max_size=config.max_body_mb << 20)
    app.on_response_prepare.append(add_request_id)
    registry = CollectorRegistry()
    for collector in (GCCollector, PlatformCollector, ProcessCollector):
        collector(registry=registry)
    index = PrefixIndex()
    fleet = Fleet()
    placement = Placement(fleet, index, chosen_policy, config.policy, clock=time.monotonic)
    registry.register(FleetCollector(fleet, index))
    app[CONFIG] = config
    app[FLEET] = fleet
    app[METRICS] = Metrics(registry)
    app[observe.REGISTRY] = registry
    app[observe.INDEX] = index
    app[STOPPING] = asyncio.Event()
    app[IN_FLIGHT_KEY] = InFlight()

    async def run(app: web.Application) -> AsyncIterator[None]:
        """Open what has a lifetime, and close it in the opposite order."""
        feed_tasks, leg_tasks = TaskOwner("events"), TaskOwner("legs")
        async with EngineClient(engine_api_key=config.engine_api_key) as client:
            feeds = EventFeeds(client, index, app[METRICS], feed_tasks) if config.kv_events else None
            watch = FleetWatch(config, fleet, client, feeds, forget=placement.forget)
            app[WATCH] = watch
            app[DIRECTOR] = Director(
                fleet=fleet,
                placement=placement,
                connector=CONNECTORS[config.connector](),
                tokenizer=EngineTokenizer(fleet, client, clock=time.monotonic),
                client=client,
                watch=watch,
                accounts=app[METRICS],
                tasks=leg_tasks,
                clock=time.monotonic,
                lease_s=config.kv_lease_s,
            )
            watch.start()
            yield
            await leg_tasks.drained(CLEANUP_S)
            await leg_tasks.close()
            await watch.close()
            await feed_tasks.close()
            if feeds is not None:
                feeds.close()

    app.cleanup_ctx.append(run)
    app.add_routes(
        [
            web.post("/v1/completions", openai.completions),
            web.post("/v1/chat/completions", openai.chat_completions),
            web.get("/v1/models", observe.models),
            web.get("/health", observe.health),
            web.get("/ready", observe.ready),
            web.get("/status", observe.status),
            web.get("/metrics", observe.metrics),
            web.get(openapi.PATH, openapi.openapi),
            web.post("/explain", observe.explain),
            web.post("/instances/add", admin.add_instance),
            web.post("/instances/drain", admin.drain_instance),
            web.post("/instances/remove", admin.remove_instance),
        ]
    )
    return app


MAX_HEADER_BYTES = 64 << 10
"""Tokens and cookies of some clients are longer than aiohttp's 8 KiB."""

IDLE_CONNECTION_S = 75.0


def create_runner(config: Config, policy: Policy | None = None) -> web.AppRunner:
    """A runner of `create_app` with the server settings kvproxy relies on.

    A client that leaves cancels its handler, and bodies come as they were sent. End it with `shut_down`: its
    own `cleanup` cuts what is running.
    """
    return web.AppRunner(
        create_app(config, policy),
        access_log=None,  # the edge middleware writes a line that knows more
        handler_cancellation=True,
        shutdown_timeout=0.1,  # aiohttp waits twice as long, and for ever if it is 0
        keepalive_timeout=IDLE_CONNECTION_S,
        auto_decompress=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    )


async def _reached(event: asyncio.Event) -> None:
    await event.wait()


async def shut_down(runner: web.AppRunner, timeout_s: float, hurry: asyncio.Event) -> None:
    """Take no more requests, let the running ones end for `timeout_s` seconds or until `hurry`, then close all."""
    runner.app[STOPPING].set()
    for site in list(runner.sites):
        await site.stop()
    waiting = TaskOwner("shutdown")
    ends = {
        waiting.create(runner.app[IN_FLIGHT_KEY].none_left(), name="requests"),
        waiting.create(_reached(hurry), name="hurry"),
    }
    await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    await waiting.close()
    await runner.cleanup()
