"""`create_app` is the one place that assembles kvproxy; whatever has a lifetime is opened and closed here, in order."""

import asyncio
import contextlib
import logging
import resource
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from kvevents import BlockHasher, PrefixIndex
from proxy.admission import BodyBudget, Gate
from proxy.caches.accuracy import Accuracy
from proxy.caches.believing import Believing
from proxy.caches.feeds import EventFeeds
from proxy.caches.told import ToldRules
from proxy.config import AllowedInstances, Config, WhenNoPrefill
from proxy.connectors import CONNECTORS
from proxy.descriptors import Descriptors, open_descriptors
from proxy.doctor import Doctor
from proxy.edge.access.authentication import CLIENT_KEYS, LOAD_ADAPTER, UNLOAD_ADAPTER, authenticate
from proxy.edge.access.client_keys import ClientKeys
from proxy.edge.access.client_salts import LEAST_SECRET_BYTES, ClientSalts, read_secret
from proxy.edge.access.cors import CorsRules
from proxy.edge.access.cross_origin import allow_origins
from proxy.edge.app_keys import (
    ACCURACY,
    ADAPTERS,
    BODIES,
    CONFIG,
    DESCRIPTORS,
    DIRECTOR,
    DISCARDING,
    DRAINING,
    FLEET,
    GATE,
    HEALING,
    MEMBERSHIP,
    METRICS,
    READER,
    SALTS,
    SPOKEN,
    STATE,
    STOPPING,
    TOKENIZER,
    WATCH,
)
from proxy.edge.middlewares import IN_FLIGHT_KEY, LOAD_KEY, InFlight, Load, edge, finish_head
from proxy.edge.routes import adapters, admin, doctor, generate, observe, openapi
from proxy.edge.sockets.doors import keep_room
from proxy.edge.sockets.listening import ServiceRunner
from proxy.errors import ConfigError
from proxy.fleet.instances import Fleet
from proxy.observability.metrics import FleetCollector, Metrics, TaskCollector
from proxy.observability.predictions import AccuracyCollector
from proxy.observability.snapshots import StateCollector
from proxy.private_files import check_key_file, readable_by_others
from proxy.request.dialects import DIALECTS, Dialect
from proxy.request.discarding import Discarding
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import load_policy
from proxy.scheduling.types import Policy
from proxy.serving.director import Director
from proxy.serving.healing import Healing
from proxy.serving.legs.prefill import ABANDONED_PREFILL_GRACE_S
from proxy.snapshots.directory import StateDirectory
from proxy.snapshots.keeper import StateKeeper
from proxy.tasks import TaskOwner
from proxy.tokenizing import PromptTokenizer, configured_tokenizer
from proxy.upstream.client import EngineClient
from proxy.watching.adapters import Adapters
from proxy.watching.membership.admin import AdminMembership
from proxy.watching.membership.base import MembershipSource
from proxy.watching.membership.configured import Configured
from proxy.watching.membership.kept import Kept
from proxy.watching.watch import FleetWatch

log = logging.getLogger(__name__)

CLEANUP_S = ABANDONED_PREFILL_GRACE_S + 3.0
"""How long what the last requests held may take to be given back when the app closes: the prefill legs that are
waited for, and then the releases of what they held."""


LAST_WORDS_S = 2.0
"""How long telling the clients of what was cut may take: `relay.CUT_GRACE_S` for those that do not read."""


def create_app(
    config: Config,
    policy: Policy | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
    sources: Sequence[MembershipSource] = (),
) -> web.Application:
    """The application of `config`; `policy` replaces the configured one. Raises ConfigError.

    `dialects`: the generating routes that it serves. `sources`: who names instances beside flags and operators.

    It watches its engines while it runs; `app[WATCH].fatal` tells if the process should rather end.
    """
    if config.connector not in CONNECTORS:
        raise ConfigError(
            f"--connector {config.connector!r} is not known: give one of {', '.join(CONNECTORS)}"
        )
    chosen_policy = policy or load_policy(config.policy)
    if policy is not None:
        config = msgspec.structs.replace(config, policy=type(policy).__name__)
    _check_key_files(config)
    local = configured_tokenizer(config.tokenizer)
    app = _application(config)
    registry = CollectorRegistry()
    for collector in (GCCollector, PlatformCollector, ProcessCollector):
        collector(registry=registry)
    directory = StateDirectory(config.state.state_dir) if config.state.state_dir is not None else None
    kept: Kept | None = None
    if directory is not None:
        allowed = AllowedInstances(config.security.allow_instances)
        restricted = bool(config.security.allow_instances)
        kept = Kept(
            directory,
            config.model,
            config.instances,
            lambda spec: allowed.why_not(spec) if restricted else None,
        )
    index = PrefixIndex(BlockHasher(directory.secret) if directory is not None else None)
    fleet = Fleet(decode_alone=config.admission.when_no_prefill is WhenNoPrefill.DECODE)
    app[ACCURACY] = accuracy = Accuracy(index.holds, upper_bound=index.upper_bound)
    index.listen(accuracy.removed)
    placement = Placement(
        fleet,
        index,
        chosen_policy,
        config.policy,
        clock=time.monotonic,
        limits=config.admission,
        accuracy=accuracy,
        tier_costs=config.tier_costs,
    )
    registry.register(FleetCollector(fleet, index))
    registry.register(AccuracyCollector(fleet, accuracy))
    registry.register(TaskCollector())
    if (file := config.security.api_key_file) is not None:
        app[CLIENT_KEYS] = keys = ClientKeys.read(file)
        if config.security.salt_by_client:
            app[SALTS] = ClientSalts(_salt_secret(config, directory), keys.groups)
        elif keys.groups:
            log.warning("%s names groups, and without --salt-by-client all keys share all caches", file)
    app[FLEET] = fleet
    app[METRICS] = Metrics(registry, known=lambda address: fleet.get(address) is not None)
    app[DESCRIPTORS] = descriptors = Descriptors(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        open_now=open_descriptors,
        clock=time.monotonic,
        accounts=app[METRICS],
        with_operators=config.security.admin_port is not None,
    )
    app[METRICS].show_connections(
        clients=lambda: descriptors.connections,
        operators=lambda: descriptors.operators,
        engines=lambda: descriptors.legs,
    )
    app[BODIES] = BodyBudget(config.admission.max_bodies_mb << 20)
    app[DISCARDING] = Discarding()
    app[READER] = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
    app[HEALING] = Healing(fleet, index, app[METRICS], time.monotonic)
    app[GATE] = Gate(
        fleet=fleet,
        placement=placement,
        limits=config.admission,
        accounts=app[METRICS],
        clock=time.monotonic,
    )
    app[METRICS].show(
        queued=lambda: len(app[GATE]),
        held_back=lambda: app[GATE].clients_held_back,
        body_bytes=lambda: app[BODIES].held_bytes,
    )
    if directory is not None and config.kv_events:
        app[STATE] = StateKeeper(
            directory,
            index,
            app[METRICS],
            interval_s=config.state.state_interval_s,
            instances=lambda: [instance.address for instance in fleet],
            trusted=accuracy.trusted,
        )
        registry.register(StateCollector(app[STATE]))
    app[observe.REGISTRY] = registry
    app[observe.INDEX] = index
    app[DRAINING], app[STOPPING] = asyncio.Event(), asyncio.Event()

    async def run(app: web.Application) -> AsyncIterator[None]:
        """Open what has a lifetime, and close it in the opposite order."""
        feed_tasks, leg_tasks = TaskOwner("events"), TaskOwner("legs")
        async with EngineClient(
            engine_api_key=config.engine_api_key,
            engine_ca=config.security.engine_ca,
            connect_timeout_s=config.deadlines.connect_s,
            descriptors=descriptors,
        ) as client:
            asks_s = config.health.timeout_s
            feeds = (
                EventFeeds(
                    client,
                    index,
                    app[METRICS],
                    feed_tasks,
                    rules=ToldRules.of(config),
                    ask_timeout_s=asks_s,
                    snapshots=app.get(STATE),
                )
                if config.kv_events
                else None
            )
            watch = FleetWatch(config, fleet, client, feeds, app[METRICS], forget=placement.forget)
            app[WATCH] = watch
            app[MEMBERSHIP] = AdminMembership(config, fleet, watch, client, kept, time.monotonic)
            drained = kept.restored.drained if kept is not None else ()
            named = Configured(config.instances, drained=drained)
            app[ADAPTERS] = Adapters(fleet, client, config.model, time.monotonic)
            app[TOKENIZER] = tokenizer = PromptTokenizer(
                fleet,
                client,
                clock=time.monotonic,
                local=local,
                look_for_local=config.tokenizer == "auto",
                count=app[METRICS].tokenized,
                memory=app[BODIES],
            )
            app[DIRECTOR] = Director(
                fleet=fleet,
                placement=placement,
                gate=app[GATE],
                connector=CONNECTORS[config.connector](),
                tokenizer=tokenizer,
                client=client,
                watch=watch.legs,
                accounts=app[METRICS],
                tasks=leg_tasks,
                clock=time.monotonic,
                lease_s=config.kv_lease_s,
                deadlines=config.deadlines,
                retries=config.retries,
                healing=app[HEALING],
                expected_answer_tokens=config.admission.expected_answer_tokens,
            )
            if (state := app.get(STATE)) is not None:
                state.start()
            app[doctor.DOCTOR] = examiner = Doctor(config, client, service=_Known(fleet, accuracy))
            watch.start([named, app[MEMBERSHIP], *sources])
            if feeds is not None:
                believing = Believing(fleet, accuracy, feeds, time.monotonic)
                feed_tasks.create(believing.keep_looking(), name="accuracy")
            tokenizer.start()
            feed_tasks.create(keep_room(descriptors), name="descriptors")
            yield
            await examiner.close(CLEANUP_S)
            await leg_tasks.drained(CLEANUP_S)
            await leg_tasks.close()
            await tokenizer.close()
            await app[ADAPTERS].close()
            if kept is not None:
                await kept.close(alone=state is None)
            if state is not None:
                await state.close()
            await watch.close()
            await feed_tasks.close()
            if feeds is not None:
                feeds.close()
        app[READER].shutdown(wait=False)

    app.cleanup_ctx.append(run)
    app[LOAD_KEY] = Load()
    app[SPOKEN] = tuple(dialects)
    if config.cors.allowed_origins:
        operators = {route.path for route in OPERATORS}
        answer_preflights = allow_origins(app, CorsRules(config.cors), operators)
        app.middlewares.insert(app.middlewares.index(authenticate), answer_preflights)
    _add_routes(app, [*map(generate.route_of, dialects), *CLIENTS, *PROBES])
    if config.security.admin_port is None:
        _add_routes(app, OPERATORS)
    return app


def _salt_secret(config: Config, directory: StateDirectory | None) -> bytes:
    """What clients' salts are made with. Raises ConfigError."""
    if config.security.salt_file is not None:
        return read_secret(config.security.salt_file)
    if directory is not None:
        return directory.secret
    log.info(
        "clients' salts are new with this start: what engines have cached for clients is not found again"
    )
    return secrets.token_bytes(LEAST_SECRET_BYTES)


class _Known:
    """What the doctor asks of the service."""

    def __init__(self, fleet: Fleet, accuracy: Accuracy) -> None:
        self._fleet = fleet
        self._accuracy = accuracy

    def index_state(self, address: str, rank: int) -> str:
        """What the index of a rank is worth."""
        instance = self._fleet.get(address)
        return instance.index_state(rank) if instance is not None else "unknown"

    def accuracy(self, address: str, rank: int) -> dict[str, Any]:
        """How right predictions for it were."""
        return self._accuracy.status(address, rank)


def _check_key_files(config: Config) -> None:
    """Warn of key files that others may read. Raises ConfigError for those that others may write."""
    security = config.security
    for flag, file in (
        ("--api-key-file", security.api_key_file),
        ("--engine-api-key-file", security.engine_api_key_file),
        ("--salt-file", security.salt_file),
        ("--tls-key", security.tls_key),
    ):
        if file is None:
            continue
        check_key_file(flag, file)
        if readable_by_others(file):
            log.warning("%s %s can be read by others than its owner", flag, file)


CLIENTS = [web.get("/v1/models", observe.models)]
"""Beside the generating routes."""
PROBES = [
    web.get("/health", observe.health),
    web.get("/ready", observe.ready),
    web.get("/ping", observe.health),
    web.post("/ping", observe.health),
    web.get("/load", observe.load),
    web.get("/version", observe.version),
    web.get(openapi.PATH, openapi.openapi),
]
OPERATORS = [
    web.get("/status", observe.status),
    web.get("/metrics", observe.metrics),
    web.post("/explain", observe.explain),
    web.get("/doctor", doctor.doctor, allow_head=False),
    web.post(LOAD_ADAPTER, adapters.load_adapter),
    web.post(UNLOAD_ADAPTER, adapters.unload_adapter),
    web.post("/instances/add", admin.add_instance),
    web.post("/instances/drain", admin.drain_instance),
    web.post("/instances/remove", admin.remove_instance),
]
"""What tells of the fleet and of other clients, or changes it: on the admin port where there is one."""


def create_admin_app(app: web.Application) -> web.Application:
    """What operators ask of `app`, on a socket of its own; it must be started after `app`."""
    admin_app = _application(app[CONFIG])

    async def share(admin_app: web.Application) -> None:
        for key, value in app.items():
            if key not in admin_app:  # its own: requests in flight, since a shutdown waits for clients alone
                admin_app[key] = value

    admin_app.on_startup.append(share)
    _add_routes(admin_app, PROBES + OPERATORS)
    return admin_app


def _add_routes(app: web.Application, routes: Sequence[web.RouteDef]) -> None:
    """Serve each path with and without a slash at its end: a redirect would cost some clients their body."""
    for route in routes:
        app.add_routes([route, web.RouteDef(route.method, f"{route.path}/", route.handler, route.kwargs)])


def _application(config: Config) -> web.Application:
    app = web.Application(middlewares=[edge, authenticate], client_max_size=config.max_body_mb << 20)
    app.on_response_prepare.append(finish_head)
    app[CONFIG] = config
    app[IN_FLIGHT_KEY] = InFlight()
    return app


def create_runner(
    config: Config,
    policy: Policy | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
    sources: Sequence[MembershipSource] = (),
) -> ServiceRunner:
    """A runner of `create_app` with the sockets that are configured; raises ConfigError.

    End it with `shut_down`: its own `cleanup` cuts what is running.
    """
    app = create_app(config, policy, dialects, sources)
    return ServiceRunner(
        app, create_admin_app(app) if config.security.admin_port is not None else None, config
    )


async def _reached(event: asyncio.Event) -> None:
    await event.wait()


async def drain(runner: web.AppRunner, delay_s: float, hurry: asyncio.Event) -> None:
    """Fail `/ready` and serve on, for `delay_s` seconds or until `hurry`: load balancers need time to take notice."""
    runner.app[DRAINING].set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await hurry.wait()


async def shut_down(runner: web.AppRunner, timeout_s: float, hurry: asyncio.Event) -> None:
    """Take no more requests, let the running ones end for `timeout_s` seconds or until `hurry`, then close all.

    An admin port stays open until the last: the end of a long drain can be watched.
    """
    runner.app[STOPPING].set()
    runner.app[GATE].close()
    for site in list(runner.sites):
        await site.stop()
    waiting = TaskOwner("shutdown")
    ends = {
        waiting.create(runner.app[IN_FLIGHT_KEY].none_left(), name="requests"),
        waiting.create(_reached(hurry), name="hurry"),
    }
    await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    runner.app[IN_FLIGHT_KEY].cut()
    last_words = waiting.create(runner.app[IN_FLIGHT_KEY].none_left(), name="last words")
    await asyncio.wait({last_words}, timeout=LAST_WORDS_S)
    await waiting.close()
    await runner.cleanup()  # aiohttp would close the connections before anything was written to them
