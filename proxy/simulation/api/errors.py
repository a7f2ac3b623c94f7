"""Invariant: every refusal has vLLM's nested error body, with the status repeated in it as an integer.

Two kinds of 400 look alike and differ in their effect: one raised while the body is parsed has none, one
raised afterwards makes the decode engine release the hold that its request named.
"""

from typing import Any


class ApiError(Exception):
    """A request is refused. `type` and `param` are vLLM's."""

    status = 500
    type = "InternalServerError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {
            "error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status},
        }


class BadRequestError(ApiError):
    """The request asks for something impossible."""

    status = 400
    type = "BadRequestError"

    @classmethod
    def of(cls, message: str, param: str, value: Any = None) -> "BadRequestError":
        """The error with the parameter and its value in the message, as vLLM writes most of them."""
        shown = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
        return cls(f"{message} ({shown})", param)


class SchemaError(BadRequestError):
    """The body does not fit the schema; `problems` are the validator's findings."""

    type = "Bad Request"

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        shown = problems[:10]
        label = "error" if len(problems) == 1 else "errors"
        text = f"{len(problems)} validation {label}:\n" + "".join(f"  {problem}\n" for problem in shown)
        if len(problems) > len(shown):
            text += f"  ...and {len(problems) - len(shown)} more {label}\n"
        super().__init__(text.rstrip(), problems[0]["loc"])


class MediaTypeError(BadRequestError):
    """The body does not say that it is JSON."""

    type = "Bad Request"

    def __init__(self) -> None:
        super().__init__("1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed")


class PermissionDeniedError(ApiError):
    """The route exists, but the engine was not started with it."""

    status = 403
    type = "PermissionDeniedError"


class NotFoundError(ApiError):
    """No such model."""

    status = 404
    type = "NotFoundError"


class GenerationFailedError(ApiError):
    """The engine could not finish this request."""

    def __init__(self) -> None:
        super().__init__("Internal server error")


class FaultError(ApiError):
    """The error that a fault answers with."""

    def __init__(self, status: int) -> None:
        super().__init__("a fault")
        self.status = status


class EngineFullError(ApiError):
    """So much is under way that the engine refuses this request. The answer has no Retry-After."""

    status = 503
    type = "Service Unavailable"

    def __init__(self, why: str) -> None:
        super().__init__(f"The engine {why}. Please try again later or on a different instance.")


class EngineGoneError(ApiError):
    """The engine behind the server has died."""

    def __init__(self) -> None:
        super().__init__(
            "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        )
