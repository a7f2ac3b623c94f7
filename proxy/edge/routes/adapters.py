"""Adapters are loaded and unloaded on all engines together, and the answer holds what each engine said."""

from collections.abc import Sequence

from aiohttp import web

from proxy.edge.access.authentication import LOAD_ADAPTER, UNLOAD_ADAPTER
from proxy.edge.app_keys import SERVICE
from proxy.edge.read_body import read_json
from proxy.edge.routes.admin import check_admin_key
from proxy.edge.routes.generate import engine_headers
from proxy.edge.shown.operators import AdaptersTold
from proxy.edge.visit import visit_of
from proxy.errors import BadRequestError
from proxy.request.body import Body
from proxy.request.outline import is_large
from proxy.shown import as_builtins


async def load_adapter(request: web.Request) -> web.Response:
    """`POST /v1/load_lora_adapter` with vLLM's body `{"lora_name", "lora_path", ...}`, on every engine."""
    return await _tell_all(request, LOAD_ADAPTER)


async def unload_adapter(request: web.Request) -> web.Response:
    """`POST /v1/unload_lora_adapter` with vLLM's body `{"lora_name"}`, on every engine."""
    return await _tell_all(request, UNLOAD_ADAPTER)


async def _tell_all(request: web.Request, path: str) -> web.Response:
    check_admin_key(request)
    visit, service = visit_of(request), request.app[SERVICE]
    data, _ = await read_json(request, visit, service)
    if is_large(data):
        raise BadRequestError("the request body is larger than any that names an adapter")
    body = Body.parse(bytes(data))
    engines = await service.adapters.tell_all(path, body.encoded(), engine_headers(request, service))
    done = sum(each.status == web.HTTPOk.status_code for each in engines)
    visit.notes["engines"] = f"{done}/{len(engines)}"
    answer = AdaptersTold(message=f"{done} of {len(engines)} engines did it", engines=list(engines))
    return web.json_response(as_builtins(answer), status=overall_status([each.status for each in engines]))


_OF_ALL = frozenset({200, 400, 404})


def overall_status(statuses: Sequence[int | None]) -> int:
    """The status that all engines answered, if it is the same and one of 200, 400 and 404; else 502.

    An adapter that only some engines have cannot be used, so that is no success.
    """
    status, *others = {*statuses} or {None}
    return status if status in _OF_ALL and not others else web.HTTPBadGateway.status_code
