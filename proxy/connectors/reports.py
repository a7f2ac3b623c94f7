"""A prefill leg may ask its engine to report the cached blocks that it reuses, which completes a partial
index.
"""

import msgspec

from kvevents import REPORT_SESSION
from proxy.request.body import Body


def asking_for_report(body: Body) -> Body | None:
    """The request, with a full report asked for; None if that is not possible.

    The session id marks the reported blocks (`kvevents.events.REPORT_SESSION`), so a client's own session id
    rules a report out. vLLM accepts any extra argument that it does not know.
    """
    if body.gives("session_id"):
        return None
    try:
        given = _decode_xargs(body.view("vllm_xargs") or b"null") or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if "session_id" in given else body.changed({"vllm_xargs": given | _REPORT})


_decode_xargs = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_REPORT = {"kv_cache_report_mode": "full", "session_id": REPORT_SESSION}
