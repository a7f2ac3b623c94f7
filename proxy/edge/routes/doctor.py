"""`GET /doctor`: the running service's engines examined, one examination at a time."""

from aiohttp import web

from proxy.doctor import Doctor, as_json
from proxy.edge.app_keys import FLEET, TOKENIZER
from proxy.edge.routes.admin import check_operator
from proxy.errors import ConflictError

DOCTOR: web.AppKey[Doctor] = web.AppKey("doctor", Doctor)


async def doctor(request: web.Request) -> web.Response:
    """The report that `kvproxy doctor --json` prints, of the instances there are now; it takes some seconds."""
    check_operator(request, "it puts load on the engines and tells of the fleet")
    examiner = request.app[DOCTOR]
    if examiner.examining:
        raise ConflictError("an examination is under way; its report goes to who asked for it")
    specs = [instance.spec for instance in request.app[FLEET]]
    return web.json_response(as_json(await examiner.examine(specs, request.app[TOKENIZER].local)))
