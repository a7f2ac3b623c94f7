"""A question to an engine returns a typed answer or raises LegError; an `Asker` is all it takes."""

from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from proxy.errors import LegBrokenError
from proxy.headers import Headers
from proxy.request.body import Encoded

T = TypeVar("T")


class Asker(Protocol):
    """Asks engines questions; the engine client does."""

    async def exchange(
        self,
        method: str,
        instance: str,
        path: str,
        body: Encoded | bytearray | None,
        timeout_s: float,
        headers: Headers | None = None,
        *,
        max_bytes: int | None = None,
    ) -> tuple[int, bytes]:
        """The status and body of an engine's answer, whatever they are; `timeout_s`: seconds.

        Raises LegError if there is no answer or it is longer than `max_bytes`, DeadlineError (a LegError) if
        none comes in time.
        """
        ...


class UnreadableError(ValueError):
    """An answer is not what vLLM answers to the question; the message says so in words for people."""


class Question(NamedTuple, Generic[T]):
    """The path of a GET, and how its answer is read."""

    path: str
    read: Callable[[bytes], T]
    """Turns the answer's body into a value. Raises UnreadableError."""


async def ask(engines: Asker, instance: str, question: Question[T], timeout_s: float) -> T:
    """An engine's answer. Raises LegError if there is none, its status is not 200, or it cannot be read."""
    status, data = await engines.exchange("GET", instance, question.path, None, timeout_s)
    if status != 200:
        raise LegBrokenError(instance, f"status {status} for {question.path}")
    return read(instance, question.read, data)


def read(instance: str, reader: Callable[[bytes], T], data: bytes) -> T:
    """An engine's answer, read by `reader`. Raises LegBrokenError if it cannot be read."""
    try:
        return reader(data)
    except UnreadableError as error:
        raise LegBrokenError(instance, str(error)) from None


def decode(path: str, data: bytes, shape: type[T], otherwise: str | None = None) -> T:
    """An answer in JSON as a `shape`. Raises UnreadableError; `otherwise`: its message for another shape."""
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.ValidationError as error:
        raise UnreadableError(
            otherwise or f"its answer to {path} is not what vLLM answers: {error}"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnreadableError(f"the answer to {path} is not JSON") from None
