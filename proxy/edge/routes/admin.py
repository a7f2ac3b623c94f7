"""The fleet is changed while kvproxy runs only by requests with the admin key."""

import hmac
from typing import Any

import msgspec
from aiohttp import web

from proxy.config import AllowedInstances, InstanceSpec, parse_instance
from proxy.edge.access.on_loopback import why_not_local
from proxy.edge.app_keys import SERVICE
from proxy.edge.read_body import read_json
from proxy.edge.shown.operators import Add, Changed, Drain, Remove
from proxy.edge.visit import visit_of
from proxy.errors import (
    BadRequestError,
    ConfigError,
    ForbiddenError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from proxy.fleet import Instance
from proxy.phases import Role
from proxy.shown import as_builtins

API_KEY = "X-API-Key"


def check_admin_key(request: web.Request) -> None:
    """Check that a request carries the admin key.

    Raises UnavailableError if none is configured, UnauthorizedError if the request has none, ForbiddenError
    if it has a wrong one.
    """
    expected = request.app[SERVICE].config.admin_api_key
    if expected is None:
        raise UnavailableError("no admin key is configured: set ADMIN_API_KEY in kvproxy's environment")
    given = request.headers.get(API_KEY)
    if given is None:
        raise UnauthorizedError(f"{API_KEY} is missing", param=API_KEY)
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode()):
        raise ForbiddenError(f"{API_KEY} is wrong", param=API_KEY)


def check_operator(request: web.Request, why: str) -> None:
    """Check that a request may read what operators may: it carries the admin key, or, if no keys are
    configured at all, comes from this machine.

    `why`: what makes it more than clients should read. Raises ForbiddenError, or as `check_admin_key`.
    """
    config = request.app[SERVICE].config
    if config.admin_api_key is not None or config.security.api_key_file is not None:
        check_admin_key(request)
    elif (elsewhere := _why_not_local(request)) is not None:
        raise ForbiddenError(
            f"{request.path} answers on loopback only while no ADMIN_API_KEY is configured, and "
            f"{elsewhere}: {why}"
        )


def _why_not_local(request: web.Request) -> str | None:
    if not request.raw_path.startswith("/"):
        return "this asks as one asks a proxy"
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    config = request.app[SERVICE].config
    return why_not_local(
        str(peer[0]) if isinstance(peer, tuple) else None,
        request.headers.items(),
        scheme=request.scheme,
        listens_on={host.lower() for host in (config.host, config.security.admin_host) if host},
    )


async def _read(request: web.Request, shape: type[Any]) -> tuple[Any, InstanceSpec]:
    """The body of a request, read as `shape`, and the instance it names. Raises RequestError."""
    check_admin_key(request)
    visit = visit_of(request)
    data, _ = await read_json(request, visit, request.app[SERVICE])
    try:
        asked = msgspec.json.decode(data, type=shape)
        spec = parse_instance(asked.instance, asked.type or Role.BOTH, origin="instance")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        choices = f" (type is one of {', '.join(Role)})" if "enum value" in str(error) else ""
        raise BadRequestError(f"the request body is not what is expected here: {error}{choices}") from None
    except ConfigError as error:
        raise BadRequestError(str(error), param="instance") from None
    visit.notes["instance"] = spec.address
    return asked, spec


async def add_instance(request: web.Request) -> web.Response:
    """`POST /instances/add` `{"type": "prefill"|"decode"|"both", "instance": "host:port"}`."""
    _, spec = await _read(request, Add)
    patterns = request.app[SERVICE].config.security.allow_instances
    if patterns and (why := AllowedInstances(patterns).why_not(spec)) is not None:
        raise ForbiddenError(why, param="instance")
    return await _done(request, await request.app[SERVICE].membership.add(spec), "added")


async def drain_instance(request: web.Request) -> web.Response:
    """`POST /instances/drain` `{"instance": "host:port", "undo": false}`: no new legs, running ones go on."""
    asked, spec = await _read(request, Drain)
    instance = _known(request, spec, asked.type)
    request.app[SERVICE].membership.drain(instance.address, undo=asked.undo)
    return await _done(request, instance, "takes legs again" if asked.undo else "takes no new legs")


async def remove_instance(request: web.Request) -> web.Response:
    """`POST /instances/remove` `{"instance": "host:port", "force": false}`.

    The instance gets no new legs, and is removed once its running legs and its holds have ended. With `force`
    it is removed at once; its legs run on, but are no longer counted.
    """
    asked, spec = await _read(request, Remove)
    instance = _known(request, spec, asked.type)
    await request.app[SERVICE].membership.remove(instance.address, force=asked.force)
    gone = request.app[SERVICE].fleet.get(instance.address) is not instance
    return await _done(
        request,
        instance,
        "removed" if gone else "takes no new legs and goes when its running ones have ended",
    )


def _known(request: web.Request, spec: InstanceSpec, role: Role | None) -> Instance:
    instance = request.app[SERVICE].fleet.get(spec.address)
    if instance is None:
        raise NotFoundError(f"{spec.address} is not known", param="instance")
    if role is not None and instance.role is not role:
        raise BadRequestError(f"{spec.address} is a {instance.role} instance, not {role}", param="type")
    return instance


async def _done(request: web.Request, instance: Instance, how: str) -> web.Response:
    await request.app[SERVICE].membership.written()
    changed = Changed(
        message=f"{instance.role} {instance.address}: {how}",
        instance=instance.address,
        type=instance.role,
        running_legs=instance.running_legs(),
    )
    return web.json_response(as_builtins(changed))
