"""The head of a request to an engine is written here, and nothing that a client wrote can end a line of it.

Pure.
"""

from proxy.headers import Headers
from proxy.request.uploads import Upload

_OWN = frozenset(
    {"host", "accept-encoding", "content-length", "content-type", "transfer-encoding", "connection", "expect"}
)
"""Headers that frame the request or choose the form of the answer: written here, never passed on."""


def head_of(
    method: str,
    instance: str,
    path: str,
    headers: Headers,
    body_bytes: int | None,
    authorization: str | None = None,
    *,
    upload: Upload | None = None,
) -> bytes:
    """The request line and headers; `body_bytes`: the length of the JSON body, None if there is none.

    `authorization` replaces the client's own; `upload`: the body, if it is none of JSON. Raises ValueError
    for a name or value with a line end.
    """
    given = ""  # lines with one carriage return and one line feed each: more of either came with a header
    lines = 0
    accept = "Accept: */*\r\n"
    for name, value in headers:
        key = name.lower()
        if key in _OWN or (authorization is not None and key == "authorization"):
            continue
        if key == "accept":
            accept = ""
        given += f"{name}: {value}\r\n"
        lines += 1
    if upload is not None:
        given += f"Content-Type: {upload.content_type}\r\n{_framing(upload)}\r\n"
        lines += 2
    if given.count("\n") != lines or given.count("\r") != lines or "\0" in given:
        raise ValueError("a header has a line end in its value")
    key_line = f"Authorization: {authorization}\r\n" if authorization is not None else ""
    frames = (
        f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n"
        if body_bytes is not None
        else ""
    )
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {instance}\r\nAccept-Encoding: identity\r\n"
        f"{given}{accept}{key_line}{frames}\r\n"
    ).encode("utf-8", "surrogateescape")


def _framing(upload: Upload) -> str:
    if upload.size_bytes is None:
        return "Transfer-Encoding: chunked"
    return f"Content-Length: {upload.size_bytes}"
