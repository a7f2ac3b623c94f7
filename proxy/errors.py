"""Every failure kvproxy answers or acts on is one of these; library errors are turned into them once, at the
edge.

The tree has two branches. A `RequestError` ends a request: it knows its HTTP status and becomes the one error
envelope. A `LegError` ends one upstream request: the director decides whether another instance is tried.
"""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from proxy.shown import Shown, as_builtins, says


class KvproxyError(Exception):
    """The root of all errors raised on purpose."""


class ConfigError(KvproxyError):
    """A setting cannot be used. The message names it and says what to do; the process ends with exit code
    2.
    """


class RequestError(KvproxyError):
    """The request cannot be served; `status` is its HTTP status, `kind` the `type` of the error body."""

    status = 500
    kind = "InternalServerError"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        """`param` names the field or header at fault; `headers` are sent with the answer; `reason`: one word
        for the log.
        """
        super().__init__(message)
        self.param = param
        self.reason = reason
        self.headers = dict(headers or {})


class BadRequestError(RequestError):
    """The client's request is malformed or asks for something that cannot be done."""

    status = 400
    kind = "BadRequestError"


class UnauthorizedError(RequestError):
    """A key is needed and none came."""

    status = 401
    kind = "AuthenticationError"


class ForbiddenError(RequestError):
    """A key came and is not the right one, or the caller may not ask this."""

    status = 403
    kind = "PermissionDeniedError"


class NotFoundError(RequestError):
    """No such model, instance or path."""

    status = 404
    kind = "NotFoundError"


class RequestTimeoutError(RequestError):
    """The client did not send its request in time."""

    status = 408
    kind = "RequestTimeoutError"


class ConflictError(RequestError):
    """What should be added is there already."""

    status = 409
    kind = "ConflictError"


class TooLargeError(RequestError):
    """The body is over the limit."""

    status = 413
    kind = "RequestEntityTooLargeError"


class UnsupportedMediaTypeError(RequestError):
    """The body is not plain JSON."""

    status = 415
    kind = "UnsupportedMediaTypeError"


class RateLimitError(RequestError):
    """More is asked than can wait; the client should come back later."""

    status = 429
    kind = "RateLimitError"


class EngineFailedError(RequestError):
    """Every attempt failed and no engine gave an answer that could be passed on."""

    status = 502
    kind = "BadGatewayError"


class UnavailableError(RequestError):
    """Nothing can serve this now; later it may."""

    status = 503
    kind = "ServiceUnavailableError"


RETRY_SOON = {"Retry-After": "1"}
"""Engines that are down are probed every 2 s at most, so it is worth asking again soon."""


def nothing_usable(phases: Iterable[str], reason: str | None = None) -> UnavailableError:
    """The answer when no instance of these phases can take the request; `reason` as in `RequestError`."""
    missing = " and ".join(f"no {phase} instance" for phase in phases)
    return UnavailableError(f"{missing} can take this request now", headers=RETRY_SOON, reason=reason)


class GatewayTimeoutError(RequestError):
    """Time was up: the request's own, or a phase's in the last attempt."""

    status = 504
    kind = "GatewayTimeoutError"


class LegError(KvproxyError):
    """An upstream request failed without a complete answer from the engine."""

    def __init__(self, instance: str, message: str) -> None:
        super().__init__(f"{instance}: {message}")
        self.instance = instance
        self.words = message


class ConnectFailedError(LegError):
    """No connection came about: not one byte of the request has reached the engine."""


class OurTroubleError(ConnectFailedError):
    """We could not even try. It says nothing of the engine."""


class NoSocketError(OurTroubleError):
    """No file descriptor or local port is left here."""


class UnresolvedError(OurTroubleError):
    """The resolver does not tell an address of the engine's name, and none was known before."""


class NotSentError(ConnectFailedError):
    """By now the instance is known to take no legs, so none was sent: nothing is held against it."""


class ConnectTimeoutError(ConnectFailedError):
    """No connection came about in time."""


class LegBrokenError(LegError):
    """The connection ended before the answer was complete: the engine may have acted on the request."""


class TooLongError(LegBrokenError):
    """The answer is longer than any to that question, so it was cut."""


class StreamFailedError(LegBrokenError):
    """The engine itself said, inside a stream that had begun, that it failed."""

    def __init__(self, instance: str, status: int, body: bytes, event: bytes) -> None:
        """`event` is what it said, word for word; `body` what it would have answered with `status`."""
        super().__init__(instance, f"the engine failed in the middle of its answer (status {status})")
        self.status = status
        self.body = body
        self.event = event

    @property
    def clients_own(self) -> bool:
        """Whether the request is to blame, and not the engine: 429 is the engine's want of room."""
        return (self.status < 500 and self.status != 429) or self.status == 501


class DeadlineError(LegBrokenError):
    """A phase of the leg took longer than it may, so its connection was closed."""


MAX_QUOTED_CHARS = 200


def cut(words: str) -> str:
    """What somebody sent, as far as an error repeats it."""
    return words if len(words) <= MAX_QUOTED_CHARS else f"{words[:MAX_QUOTED_CHARS]}..."


class ErrorToldShown(Shown, frozen=True, kw_only=True):
    """What went wrong."""

    message: Annotated[str, msgspec.Meta(min_length=1)]
    type: Annotated[str, says("The kind of error, in vLLM's words.")]
    param: Annotated[str | None, says("The field or header at fault.")]
    code: Annotated[int, says("The HTTP status.")]


class ErrorShown(Shown, frozen=True, kw_only=True):
    """The body of every error that is kvproxy's own."""

    error: ErrorToldShown


def envelope(message: str, kind: str, status: int, param: str | None = None) -> dict[str, Any]:
    """The error body of every answer that is ours, in the nested form vLLM answers with."""
    told = ErrorToldShown(message=message, type=kind, param=param, code=status)
    return as_builtins(ErrorShown(error=told))
