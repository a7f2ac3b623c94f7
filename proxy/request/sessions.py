"""The session of a request is what its client calls it: a header, else `prompt_cache_key`, else `user`.

The first that has a name counts. A name decides where a request goes, and nothing else.
"""

from proxy.errors import BadRequestError
from proxy.request.body import Body

MEMBERS = ("prompt_cache_key", "user")
"""The members that name a session, the closest first: a user may have several."""

MAX_NAME_BYTES = 1024
"""The longest text of a member that is a name, as it is written; longer ones name no session."""


def session_of(named: str | None, body: Body) -> str | None:
    """The name of a request's session; None if it names none. `named`: the value of the header, if there is
    one.
    """
    if named:
        return named
    for name in MEMBERS:
        view = body.view(name)
        if view is None or len(view) > MAX_NAME_BYTES:
            continue
        try:
            value = body.value(name)
        except BadRequestError:  # it is the engine that judges it
            continue
        if isinstance(value, str) and value:
            return value
    return None
