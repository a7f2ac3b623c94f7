"""What the doctor saw of a connector at work, as values; the connector judges them, and asks nothing
itself.
"""

import msgspec

from proxy.connectors.handoff import Handoff
from proxy.phases import Role


class LegEnd(msgspec.Struct, frozen=True):
    """How a tried leg ended."""

    failed: str | None = None
    """Why the leg failed, in words; None if it was answered with status 200."""
    status: int | None = None
    """The status of a refusal; None if the engine refused nothing."""

    @property
    def ok(self) -> bool:
        """Whether the leg was answered."""
        return self.failed is None


class Moved(msgspec.Struct, frozen=True):
    """Where the prompt tokens came from that a decode engine counted while it served a decode leg."""

    prompt: float
    """All prompt tokens; more than the leg's own if other requests ran."""
    by_source: dict[str, float]
    """The tokens by source, in vLLM's words: `local_compute`, `external_kv_transfer`, `local_cache_hit`."""
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
    """A pair over which a prompt was sent as a request would be."""

    prefill: str
    """`host:port`, as `decode`."""
    decode: str
    prompt_tokens: int
    prefill_leg: LegEnd | None = None
    """None if the leg was not sent, or was cancelled because the other failed; `decode_leg` likewise."""
    decode_leg: LegEnd | None = None
    handoff: Handoff | None = None
    """What the prefill engine answered; None if no decode leg can be made from its answer."""
    moved: Moved | None = None
    """None if the decode engine's metrics do not tell."""
    took_s: float = 0.0
    block_size: int | None = None
    """The tokens of a block of the decode engine."""
    stranded: bool = False
    """Whether prefilled blocks stay held until their lease ends."""


class SeenEngine(msgspec.Struct, frozen=True):
    """One engine of a fleet."""

    address: str
    role: Role
    version: str | None
    """The vLLM version that the engine gives; None if it gives none."""
