"""The head of a request to an engine is written here, and nothing that a client wrote can end a line of it.

Pure.
"""

from proxy.headers import Headers

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
) -> bytes:
    """The request line and headers; `body_bytes`: the length of the JSON body, None if there is none.

    `authorization` replaces the client's own. Raises ValueError for a name or value with a line end.
    """
    lines = [f"{method} {path} HTTP/1.1\r\nHost: {instance}\r\nAccept-Encoding: identity"]
    accepts = False
    for name, value in headers:
        key = name.lower()
        if key in _OWN or (authorization is not None and key == "authorization"):
            continue
        accepts = accepts or key == "accept"
        lines.append(f"{name}: {value}")
    given = "".join(lines[1:])
    if "\n" in given or "\r" in given or "\0" in given:
        raise ValueError("a header has a line end in its value")
    if not accepts:
        lines.append("Accept: */*")
    if authorization is not None:
        lines.append(f"Authorization: {authorization}")
    if body_bytes is not None:
        lines.append(f"Content-Type: application/json\r\nContent-Length: {body_bytes}")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")
