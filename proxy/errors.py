"""Every failure that kvproxy answers or acts on is an error of this file; errors of libraries are turned into
them where the library is called.

The tree has two main branches. A `RequestError` ends a request: it knows its HTTP status and becomes the one
error envelope. A `LegError` ends one upstream request: the director decides whether another is tried.
"""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from proxy.shown import Shown, as_builtins, says


class KvproxyError(Exception):
    """The root of all errors raised on purpose."""


class ConfigError(KvproxyError):
    """A setting cannot be used. The message names the setting and says what to do; the exit code is 2."""


class TraceError(KvproxyError):
    """A file of traffic cannot be read or used. The message names the file, line and member at fault."""


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
        """`param`: the field or header at fault; `headers`: sent with the answer; `reason`: one word for the
        log.
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
    """A key is needed, and the request has none."""

    status = 401
    kind = "AuthenticationError"


class ForbiddenError(RequestError):
    """The request's key is not the right one, or its sender may not ask this."""

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
    """What should be added or begun is there already."""

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
    """The queue has no place for the request; the client should come back later."""

    status = 429
    kind = "RateLimitError"


class EngineFailedError(RequestError):
    """Every attempt failed and no engine gave an answer that could be passed on."""

    status = 502
    kind = "BadGatewayError"


class UnavailableError(RequestError):
    """The request cannot be served now; later it may be."""

    status = 503
    kind = "ServiceUnavailableError"


RETRY_SOON = {"Retry-After": "1"}
"""Engines that are down are checked at least every 2 s, so it is worth asking again soon."""


def nothing_usable(phases: Iterable[str], reason: str | None = None) -> UnavailableError:
    """The error if no instance for these phases can take the request; `reason`: see `RequestError`."""
    missing = " and ".join(f"no {phase} instance" for phase in phases)
    return UnavailableError(f"{missing} can take this request now", headers=RETRY_SOON, reason=reason)


class GatewayTimeoutError(RequestError):
    """The request's own deadline passed, or one of a leg in the last attempt."""

    status = 504
    kind = "GatewayTimeoutError"


class LegError(KvproxyError):
    """An upstream request got no complete answer from its engine. `words`: what went wrong, without the
    instance.
    """

    def __init__(self, instance: str, message: str) -> None:
        super().__init__(f"{instance}: {message}")
        self.instance = instance
        self.words = message


class ConnectFailedError(LegError):
    """No connection came about: not one byte of the request has reached the engine."""


class OurTroubleError(ConnectFailedError):
    """kvproxy could not even try to connect. That says nothing of the engine."""


class NoSocketError(OurTroubleError):
    """kvproxy has no file descriptor or local port left."""


class UnresolvedError(OurTroubleError):
    """The resolver gave no address for the engine's name, and none was known before."""


class NotSentError(ConnectFailedError):
    """The leg was not sent, since its instance takes no legs by now. This is no failure of the instance."""


class ConnectTimeoutError(ConnectFailedError):
    """No connection came about in time."""


class LegBrokenError(LegError):
    """The connection ended before the answer was complete: the engine may have acted on the request."""


class TooLongError(LegBrokenError):
    """The answer is longer than any to that question can be, so it was not read to its end."""


class StreamFailedError(LegBrokenError):
    """The engine reported a failure by an event inside a stream that had begun."""

    def __init__(self, instance: str, status: int, body: bytes, event: bytes) -> None:
        """`event`: the engine's event; `status` and `body`: the answer that it stands for."""
        super().__init__(instance, f"the engine failed in the middle of its answer (status {status})")
        self.status = status
        self.body = body
        self.event = event

    @property
    def clients_own(self) -> bool:
        """Whether the request is to blame, and not the engine; 429 says that the engine has no room."""
        return (self.status < 500 and self.status != 429) or self.status == 501


class DeadlineError(LegBrokenError):
    """The engine took longer than a deadline allows, so the connection was closed."""


MAX_QUOTED_CHARS = 200


def cut(words: str) -> str:
    """A text of a client's, cut to the length that an error repeats."""
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
    """The body of every error that is kvproxy's own, in vLLM's nested form."""
    error = ErrorToldShown(message=message, type=kind, param=param, code=status)
    return as_builtins(ErrorShown(error=error))
