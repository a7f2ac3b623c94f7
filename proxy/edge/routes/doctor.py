"""`GET /doctor` examines the engines of the running service, one examination at a time."""

from aiohttp import web

from proxy.doctor import as_json
from proxy.edge.app_keys import SERVICE
from proxy.edge.routes.admin import check_operator
from proxy.errors import ConflictError


async def doctor(request: web.Request) -> web.Response:
    """The report that `kvproxy doctor --json` prints, of the present instances; it takes some seconds.

    Raises ConflictError while another examination runs.
    """
    check_operator(request, "it puts load on the engines and tells of the fleet")
    examiner = request.app[SERVICE].doctor
    if examiner.examining:
        raise ConflictError("an examination is under way; its report goes to who asked for it")
    specs = [instance.spec for instance in request.app[SERVICE].fleet]
    return web.json_response(as_json(await examiner.examine(specs, request.app[SERVICE].tokenizer.local)))
