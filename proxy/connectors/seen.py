"""What the doctor saw of a connector at work, as values: the connector judges it, and asks nothing itself."""

import msgspec

from proxy.connectors.handoff import Handoff
from proxy.phases import Role


class LegEnd(msgspec.Struct, frozen=True):
    """How a leg ended that was tried."""

    failed: str | None = None
    """Why, in words; None if the leg was answered with status 200."""
    status: int | None = None
    """That of a refusal; None if the engine refused nothing."""

    @property
    def ok(self) -> bool:
        """The leg was answered."""
        return self.failed is None


class Moved(msgspec.Struct, frozen=True):
    """Where the prompt tokens came from that a decode engine counted while it served a decode leg."""

    prompt: float
    """All of them: more than the leg's own if other requests ran."""
    by_source: dict[str, float]
    """By vLLM's words: `local_compute`, `external_kv_transfer`, `local_cache_hit`."""
    asked_connector: float | None
    """Prompt tokens that the engine asked its connector for; None if its metrics do not tell."""
    failed_transfers: float

    @property
    def computed(self) -> float:
        """Tokens that the decode engine computed itself."""
        return self.by_source.get("local_compute", 0.0)

    @property
    def fetched(self) -> float:
        """Tokens that came from another engine, or from a store."""
        return self.by_source.get("external_kv_transfer", 0.0)


class TriedPair(msgspec.Struct, frozen=True):
    """A prompt that was sent over a pair as a request would be."""

    prefill: str
    """`host:port`, as `decode`."""
    decode: str
    prompt_tokens: int
    prefill_leg: LegEnd | None = None
    """None if it was not sent, or was cancelled as the other one failed; `decode_leg` likewise."""
    decode_leg: LegEnd | None = None
    handoff: Handoff | None = None
    """What the prefill engine answered; None if its answer told nothing that a decode leg can be made of."""
    moved: Moved | None = None
    """None if the decode engine's metrics do not tell."""
    took_s: float = 0.0
    block_size: int | None = None
    """In tokens, of the decode engine."""
    stranded: bool = False
    """What was prefilled stays held until its lease ends."""


class SeenEngine(msgspec.Struct, frozen=True):
    """One engine of a fleet."""

    address: str
    role: Role
    version: str | None
    """vLLM's, as it tells it; None if it does not."""
