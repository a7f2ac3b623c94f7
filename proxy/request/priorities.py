"""No client gets a better priority than it may claim, neither in kvproxy's queue nor in an engine's.

Priorities are read as vLLM reads them: lower goes first, the header `X-Vllm-Priority` counts if it is an
integer, else the member `priority`; without either it is 0.
"""

from proxy.headers import PRIORITY, Headers
from proxy.request.generation import GenerationRequest
from proxy.request.like_pydantic import as_whole_number


def claimed(request: GenerationRequest, header: str | None) -> int:
    """The priority that a request claims. A member that is no priority counts as 0, and engines judge it."""
    number = _in_header(header) if header is not None else None
    if number is None and "priority" in request.body:
        number = as_whole_number(request.body.value("priority"))
    return number or 0


def bounded(request: GenerationRequest, headers: Headers, least: int) -> tuple[GenerationRequest, Headers]:
    """The request and its headers as engines may get them: no number below `least` in either.

    Not every release reads the header, so the member is bounded whatever the header says.
    """
    kept = [
        (name, str(least))
        if name.lower() == _NAME and (said := _in_header(value)) is not None and said < least
        else (name, value)
        for name, value in headers
    ]
    member = as_whole_number(request.body.value("priority")) if "priority" in request.body else 0
    return (
        request.with_member("priority", least) if member is not None and member < least else request
    ), kept


_NAME = PRIORITY.lower()


def _in_header(value: str) -> int | None:
    """The integer that vLLM's server reads in a header: it takes bytes for Latin-1, and ignores white space
    of that.
    """
    try:
        return int(value.encode("utf-8", "surrogateescape").decode("latin-1"))
    except ValueError:
        return None
