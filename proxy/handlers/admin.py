"""Changing the fleet while it runs; only with the admin key."""

import hmac
from typing import Any

import msgspec
from aiohttp import web

from proxy.app_keys import CONFIG, FLEET, WATCH
from proxy.config import Role, parse_instance
from proxy.errors import (
    BadRequestError,
    ConfigError,
    ForbiddenError,
    UnauthorizedError,
    UnavailableError,
)
from proxy.handlers.openai import read_json_bytes

API_KEY = "X-API-Key"


def check_admin_key(request: web.Request) -> None:
    """Raises UnavailableError if no admin key is configured, UnauthorizedError without, ForbiddenError with a wrong one."""
    expected = request.app[CONFIG].admin_api_key
    if expected is None:
        raise UnavailableError("no admin key is configured: set ADMIN_API_KEY in kvproxy's environment")
    given = request.headers.get(API_KEY)
    if given is None:
        raise UnauthorizedError(f"{API_KEY} is missing", param=API_KEY)
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode()):
        raise ForbiddenError(f"{API_KEY} is wrong", param=API_KEY)


class _Add(msgspec.Struct, forbid_unknown_fields=True):
    instance: str
    type: Role


class _Remove(msgspec.Struct, forbid_unknown_fields=True):
    instance: str
    type: Role | None = None
    force: bool = False


async def _read(request: web.Request, shape: type[Any]) -> Any:
    data = await read_json_bytes(request)
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the request body is not what is expected here: {error}") from None


async def add_instance(request: web.Request) -> web.Response:
    """`POST /instances/add` `{"type": "prefill"|"decode"|"both", "instance": "host:port"}`."""
    check_admin_key(request)
    asked: _Add = await _read(request, _Add)
    try:
        spec = parse_instance(asked.instance, asked.type, origin="instance")
    except ConfigError as error:
        raise BadRequestError(str(error), param="instance") from None
    instance = await request.app[WATCH].add(spec)
    return web.json_response(
        {
            "message": f"added {instance.role} {instance.address}",
            "instance": instance.address,
            "type": instance.role,
        }
    )


async def remove_instance(request: web.Request) -> web.Response:
    """`POST /instances/remove` `{"instance": "host:port", "force": false}`; a `type`, if given, must be right."""
    check_admin_key(request)
    asked: _Remove = await _read(request, _Remove)
    address = asked.instance.strip().lower()
    instance = request.app[FLEET].get(address)
    if asked.type is not None and instance is not None and instance.role is not asked.type:
        raise BadRequestError(f"{address} is a {instance.role} instance, not {asked.type}", param="type")
    instance = await request.app[WATCH].remove(address, force=asked.force)
    legs = instance.running_legs()
    how = (
        "removed at once" if asked.force or not legs else f"takes no new legs; {legs} running ones end first"
    )
    return web.json_response(
        {
            "message": f"{instance.role} {address}: {how}",
            "instance": address,
            "type": instance.role,
            "running_legs": legs,
        }
    )
