"""What the director needs from others, as Protocols: it gets them as arguments and knows no more of them than
this.
"""

from collections.abc import Collection
from typing import Protocol

from proxy.errors import LegError
from proxy.fleet import Instance
from proxy.headers import Headers
from proxy.phases import Phase
from proxy.request.body import Encoded
from proxy.request.generation import GenerationRequest
from proxy.serving.custody import HoldState
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

    def leg_erred(self, address: str) -> None:
        """The engine answered that it failed; the request may be to blame."""
        ...

    def outdone(self, addresses: Collection[str]) -> None:
        """Legs failed there, and other instances then served the same request."""
        ...

    def process_seen(self, instance: Instance, rank: int, engine_id: str) -> None:
        """An answer names the engine process it came from."""
        ...


class Accounts(Protocol):
    """Where counters and timings go."""

    def decided(self, seconds: float) -> None:
        """Our own time from the request to the first leg."""
        ...

    def prefill_ended(self, instance: str, seconds: float) -> None:
        """A prefill leg was answered."""
        ...

    def prefilled(
        self, instance: str, prompt: int | None, predicted: int | None, reported: int | None
    ) -> None:
        """A finished prefill leg: its prompt tokens, and the cached ones as predicted and as reported."""
        ...

    def tokens_unknown(self, why: str) -> None:
        """A prompt was placed without knowing its tokens."""
        ...

    def tokens_differ(self, instance: str) -> None:
        """An engine counted a prompt otherwise than we did."""
        ...

    def retried(self, phase: Phase, instance: str, why: str) -> None:
        """A failed leg is followed by another attempt; `why` is one of a few words."""
        ...

    def refused(self, reason: str) -> None:
        """A request was not let in; `reason` as `admission.QueueAccounts` has them."""
        ...

    def retry_refused(self, phase: Phase) -> None:
        """A failed leg is not followed by another attempt, for want of budget."""
        ...

    def engine_full(self, phase: Phase, instance: str) -> None:
        """An engine had no room for a leg."""
        ...

    def hold_ended(self, end: HoldState) -> None:
        """A hold was pulled, released or stranded."""
        ...
