"""`create_app` puts HTTP in front of a `Service`: which paths there are, and who may ask for them."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from proxy.config import Config
from proxy.connectors import Connector
from proxy.edge.access.authentication import (
    CLIENT_KEYS,
    FOR_CLIENTS,
    LOAD_ADAPTER,
    UNLOAD_ADAPTER,
    authenticate,
)
from proxy.edge.access.client_keys import ClientKeys
from proxy.edge.access.client_salts import MIN_SECRET_BYTES, ClientSalts, read_secret
from proxy.edge.access.cors import CorsRules
from proxy.edge.access.cross_origin import allow_origins
from proxy.edge.app_keys import SALTS, SERVICE, SPOKEN, WHOLE
from proxy.edge.middlewares import IN_FLIGHT_KEY, LOAD_KEY, InFlight, Load, edge, finish_head
from proxy.edge.patience import PATIENCE, Patience
from proxy.edge.routes import adapters, admin, doctor, generate, observe, openapi, responses
from proxy.edge.sockets.doors import keep_room
from proxy.edge.sockets.listening import ServiceRunner
from proxy.errors import ConfigError
from proxy.happenings import Consumer
from proxy.observability.series import Series
from proxy.private_files import check_key_file, readable_by_others
from proxy.request.dialects import DIALECTS, Dialect
from proxy.request.dialects.whole import whole_dialects
from proxy.request.passing import ROUTES, Whole, routes_passed
from proxy.scheduling.types import AnyPolicy
from proxy.service import Service, assemble
from proxy.serving.waits import WAITS, Waits
from proxy.snapshots.directory import StateDirectory
from proxy.tasks import TaskOwner
from proxy.tuning import TUNING, Tuning
from proxy.watching.membership.base import MembershipSource

log = logging.getLogger(__name__)

LAST_WORDS_S = 2.0
"""How long clients may take to be told that their answers were cut: more than `relay.CUT_GRACE_S`, which a
client gets that does not read."""


def create_app(
    config: Config,
    policy: AnyPolicy | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
    sources: Sequence[MembershipSource] = (),
    waits: Waits = WAITS,
    connector: Connector | None = None,
    tuning: Tuning = TUNING,
    consumers: Sequence[Consumer] = (),
    series: Sequence[Series] = (),
) -> web.Application:
    """The application of `config`; `policy` and `connector` replace the configured ones. Raises ConfigError.

    `dialects`: the generating routes that it serves. The other arguments are those of `assemble`.
    """
    _check_key_files(config)
    service = assemble(config, policy, sources, waits, connector, tuning, consumers, series)
    app = _application(service)
    if config.cors.allowed_origins:
        operators = {route.path for route in OPERATORS}
        app.middlewares.append(allow_origins(app, CorsRules(config.cors), operators))
    if (file := config.security.api_key_file) is not None:
        app[CLIENT_KEYS] = keys = ClientKeys.read(file)
        app.middlewares.append(authenticate)
        if config.security.salt_by_client:
            app[SALTS] = ClientSalts(_salt_secret(config, service.directory), keys.groups)
        elif keys.groups:
            log.warning("%s names groups, and without --salt-by-client all keys share all caches", file)

    async def run(_app: web.Application) -> AsyncIterator[None]:
        doors = TaskOwner("doors")
        async with service.running():
            doors.create(keep_room(service.descriptors), name="descriptors")
            yield
            await doors.close()

    app.cleanup_ctx.append(run)
    app[LOAD_KEY] = Load()
    app[SPOKEN] = tuple(dialects)
    app[WHOLE] = whole = _served_whole(config, dialects)
    served = [*dialects, *whole_dialects(whole)]
    for_clients = [*(generate.route_of(dialect, app) for dialect in served), *CLIENTS]
    if any(dialect.stores for dialect in dialects):
        for_clients += STORED
    app[FOR_CLIENTS] = frozenset(route.path for route in for_clients)
    _add_routes(app, [*for_clients, *PROBES])
    if config.security.admin_port is None:
        _add_routes(app, OPERATORS)
    return app


def _served_whole(config: Config, dialects: Sequence[Dialect]) -> tuple[Whole, ...]:
    """The routes that one engine serves whole: those of the table that no dialect serves, and those of
    `--pass`. Raises ConfigError for one of these that is served otherwise.
    """
    spoken = {dialect.path for dialect in dialects}
    known = [route for route in ROUTES if route.path not in spoken]
    taken = {route.path for route in known} | {route.path for route in (*CLIENTS, *PROBES, *OPERATORS)}
    for path in config.passed:
        if path in taken | spoken:
            raise ConfigError(f"--pass {path}: kvproxy serves it already")
    return (*known, *routes_passed(config.passed))


def _salt_secret(config: Config, directory: StateDirectory | None) -> bytes:
    """The secret that clients' salts are made with. Raises ConfigError."""
    if config.security.salt_file is not None:
        return read_secret(config.security.salt_file)
    if directory is not None:
        return directory.secret
    log.info(
        "clients' salts are new with this start: what engines have cached for clients is not found again"
    )
    return secrets.token_bytes(MIN_SECRET_BYTES)


def _check_key_files(config: Config) -> None:
    """Log a warning for key files that other users may read. Raises ConfigError for those they may write."""
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


CLIENTS = [web.get("/v1/models", observe.models), web.get("/v1/models/{model:.+}", observe.model)]
"""What clients may ask beside the generating routes."""
STORED = [
    web.RouteDef(method, path, responses.about, {"allow_head": False} if method == "GET" else {})
    for method, path in responses.PATHS
]
"""What clients may ask about stored responses; engines answer no HEAD."""
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
"""Paths that show the fleet and other clients, or change the fleet: on the admin port where there is one."""


def create_admin_app(app: web.Application) -> web.Application:
    """The application of the admin port, over the service of `app`; it MUST be started after `app`."""
    admin_app = _application(app[SERVICE])
    for key, value in app.items():
        if key not in admin_app:  # it has its own requests in flight: a shutdown waits for clients alone
            admin_app[key] = value
    if CLIENT_KEYS in admin_app:
        admin_app.middlewares.append(authenticate)
    _add_routes(admin_app, PROBES + OPERATORS)
    return admin_app


def _add_routes(app: web.Application, routes: Sequence[web.RouteDef]) -> None:
    """Serve each path with and without a slash at its end: a redirect would cost some clients their body."""
    for route in routes:
        app.add_routes([route, web.RouteDef(route.method, f"{route.path}/", route.handler, route.kwargs)])


def _application(service: Service) -> web.Application:
    app = web.Application(middlewares=[edge], client_max_size=service.config.max_body_mb << 20)
    app.on_response_prepare.append(finish_head)
    app[SERVICE] = service
    app[IN_FLIGHT_KEY] = InFlight()
    return app


def create_runner(
    config: Config,
    policy: AnyPolicy | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
    sources: Sequence[MembershipSource] = (),
    waits: Waits = WAITS,
    patience: Patience = PATIENCE,
    connector: Connector | None = None,
    tuning: Tuning = TUNING,
    consumers: Sequence[Consumer] = (),
    series: Sequence[Series] = (),
) -> ServiceRunner:
    """A runner of `create_app` on the configured sockets. Raises ConfigError.

    `patience`: how long clients may take. End the runner with `shut_down`: its `cleanup` alone would cut the
    requests that run.
    """
    app = create_app(config, policy, dialects, sources, waits, connector, tuning, consumers, series)
    return ServiceRunner(
        app, create_admin_app(app) if config.security.admin_port is not None else None, config, patience
    )


async def _reached(event: asyncio.Event) -> None:
    await event.wait()


async def drain(runner: web.AppRunner, delay_s: float, hurry: asyncio.Event) -> None:
    """Fail `/ready` and serve on for `delay_s` seconds or until `hurry`, so that load balancers notice."""
    runner.app[SERVICE].draining.set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await hurry.wait()


async def shut_down(runner: web.AppRunner, timeout_s: float, hurry: asyncio.Event) -> None:
    """Accept no more requests, let the running ones end for `timeout_s` seconds or until `hurry`, then cut
    the rest and close all.

    An admin port stays open until the end, so that operators can watch a long drain.
    """
    runner.app[SERVICE].stopping.set()
    runner.app[SERVICE].gate.close()
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
    await runner.cleanup()  # only now: it closes connections without a word to their clients
