"""What the director needs from others, as Protocols: it gets them as arguments and knows no more of them than
this.
"""

from collections.abc import Collection
from typing import Protocol

from proxy.errors import LegError
from proxy.fleet import Instance
from proxy.headers import Headers
from proxy.request.body import Encoded
from proxy.request.generation import GenerationRequest
from proxy.tokenizing import Tokenized


class Answer(Protocol):
    """An engine's answer: the head is there, the body comes."""

    instance: str
    status: int
    headers: Headers
    is_event_stream: bool

    async def read(self, most_bytes: int | None = None) -> bytes:
        """The whole body, of so many bytes at most; raises LegError."""
        ...

    async def next_chunk(self, limit_s: float | None = None) -> bytes:
        """The next piece of the body, nothing at its end; raises LegError, also if none comes for `limit_s`
        seconds.
        """
        ...

    def close(self) -> None:
        """Drop it."""
        ...


class Client(Protocol):
    """Sends legs."""

    async def post(self, instance: str, path: str, body: Encoded, headers: Headers) -> Answer:
        """Raises ConnectFailedError or LegBrokenError."""
        ...


class Tokenizer(Protocol):
    """Finds out the token ids of a prompt."""

    async def tokenize(self, request: GenerationRequest, headers: Headers, client: str) -> Tokenized:
        """`client`: whose turn it takes. Raises nothing."""
        ...

    def distrust(self, kind: str) -> None:
        """Prompts of this kind were counted wrongly."""
        ...

    def is_distrusted(self, kind: str) -> bool:
        """Whether prompts of this kind were counted wrongly of late."""
        ...


class Watch(Protocol):
    """Told what legs show of an instance's health."""

    def leg_failed(self, instance: Instance, error: LegError) -> None:
        """A leg got no complete answer."""
        ...

    def suspect(self, instance: Instance) -> None:
        """It may be dead, or serve something else by now; nothing is held against it."""
        ...

    def leg_began(self, address: str) -> None:
        """A leg began to stream what was asked for; it may still break."""
        ...

    def leg_served(self, address: str) -> None:
        """A leg was answered with what was asked for."""
        ...

    def engine_failed(self, address: str) -> None:
        """The engine answered that it failed; the request may be to blame."""
        ...

    def others_served(self, addresses: Collection[str]) -> None:
        """Legs failed there, and other instances then served the same request."""
        ...

    def process_seen(self, instance: Instance, rank: int, engine_id: str) -> None:
        """An answer names the engine process it came from."""
        ...
