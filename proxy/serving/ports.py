"""These Protocols are all that serving knows of its client, tokenizer and watch: they are passed in as
arguments.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from proxy.errors import LegError
from proxy.fleet import Instance
from proxy.headers import Headers
from proxy.request.body import Encoded
from proxy.request.generation import GenerationRequest
from proxy.request.uploads import Upload
from proxy.tokenizing import Tokenized


class Answer(Protocol):
    """An engine's answer whose head has arrived; the body is still to be read."""

    instance: str
    status: int
    headers: Headers
    is_event_stream: bool

    async def read(self, max_bytes: int | None = None) -> bytes:
        """The whole body. Raises LegError if it is cut, or longer than `max_bytes`."""
        ...

    async def next_chunk(self, limit_s: float | None = None) -> bytes:
        """The next piece of the body; empty at its end.

        Raises LegError if it is cut, DeadlineError (a LegError) if nothing comes for `limit_s` seconds.
        """
        ...

    async def pour(self, take: Callable[[bytes], bool], limit_s: float) -> None:
        """Give `take` the pieces of the body in the turn of the loop in which they arrive; it may not raise.

        Ends once `take` returns False, and once no more pieces come: `next_chunk` tells why. Raises
        DeadlineError if no piece comes for `limit_s` seconds.
        """
        ...

    def close(self) -> None:
        """Drop what is unread. A second call does nothing."""
        ...


class Uploaded(Protocol):
    """A leg whose body was sent as it arrived, and whose answer is still to come."""

    async def answer(self) -> Answer:
        """Wait for the head of its answer. Raises LegError."""
        ...

    def close(self) -> None:
        """Wait no longer."""
        ...


class Socket(Answer, Protocol):
    """A WebSocket to an engine: open if its status is 101, else the engine's refusal."""

    @property
    def protocol(self) -> str | None:
        """The subprotocol that the engine has chosen."""
        ...

    @property
    def close_code(self) -> int:
        """The code with which the engine has closed it."""
        ...

    async def receive(self) -> str | bytes | None:
        """The engine's next message; None once it has closed the socket. Raises LegError if it breaks."""
        ...

    async def send(self, message: str | bytes) -> None:
        """Pass a message on. Raises LegError."""
        ...

    async def finish(self, code: int) -> None:
        """Close it in order."""
        ...


class Client(Protocol):
    """Sends legs."""

    async def open(self, instance: str, path: str, headers: Headers, protocols: Sequence[str]) -> Socket:
        """Open a WebSocket. Raises LegError."""
        ...

    async def upload(
        self, instance: str, path: str, body: Upload, headers: Headers, limit_s: float
    ) -> Uploaded:
        """Send a request whose body is still arriving. Raises LegError, also if the engine reads nothing for
        `limit_s` seconds, and what reading the body raises.
        """
        ...

    async def post(self, instance: str, path: str, body: Encoded, headers: Headers) -> Answer:
        """Send a request and wait for the head of its answer. Raises LegError."""
        ...


class Tokenizer(Protocol):
    """Turns prompts into token ids."""

    async def tokenize(self, request: GenerationRequest, headers: Headers, client: str) -> Tokenized:
        """The tokens of a request's prompt, or why they are unknown; `client`: whose turn is taken for it.

        Raises nothing.
        """
        ...

    async def measure(self, request: GenerationRequest, client: str) -> Tokenized:
        """As `tokenize` where nobody reads the tokens: how many they are about, and whether they fit nowhere.

        Raises nothing.
        """
        ...

    def distrust(self, kind: str) -> None:
        """An engine counted a prompt of this kind otherwise than kvproxy."""
        ...

    def is_distrusted(self, kind: str) -> bool:
        """Whether prompts of this kind are distrusted now."""
        ...


class Watch(Protocol):
    """Hears from legs what they show of an instance's health."""

    def leg_failed(self, instance: Instance, error: LegError) -> None:
        """A leg got no complete answer."""
        ...

    def suspect(self, instance: Instance) -> None:
        """The instance may be dead, or serve other models by now: have it checked. Counts no failure."""
        ...

    def leg_began(self, address: str) -> None:
        """A leg began to stream what was asked for; the stream may still break."""
        ...

    def leg_served(self, address: str) -> None:
        """A leg was answered with what was asked for."""
        ...

    def engine_failed(self, address: str) -> None:
        """The engine answered that it failed; the request may be to blame."""
        ...

    def others_served(self, addresses: Collection[str]) -> None:
        """A request failed on these instances, and others then served it: the instances are to blame."""
        ...

    def process_seen(self, instance: Instance, rank: int, engine_id: str) -> None:
        """An answer names the engine process that it came from (`engine_id`)."""
        ...
