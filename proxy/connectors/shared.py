"""Connectors that share KV through a store of their own: the same request goes twice, with no params between
the legs.
"""

from collections.abc import Sequence

from proxy.connectors import hand_over
from proxy.connectors.handoff import Handoff, read_params
from proxy.connectors.plans import InTurn
from proxy.connectors.seen import SeenEngine, TriedPair
from proxy.findings import Finding
from proxy.request.body import Body, Encoded
from proxy.request.dialects import Usage
from proxy.request.generation import GenerationRequest

_UNREACHABLE = "look at the log of the decode engine: it must reach the store that both are to share"

_ITSELF = (
    ": it finds nothing in a store they share",
    (
        "give both engines the same shared store in --kv-transfer-config (one path, one server, both reach "
        "it); for engines with NixlConnector give kvproxy --connector nixl"
    ),
)


class SharedConnector:
    """Shared storage, such as vLLM's ExampleConnector: prefill writes the blocks, decode finds them by
    content.
    """

    name = "shared"
    how = "sends two plain legs for engines with a shared store"

    def plan(self, request: GenerationRequest) -> InTurn:  # noqa: ARG002  # whatever it asks for
        """As `Connector`."""
        return InTurn(self, leased=False)

    def prefill_body(self, first: Body) -> Encoded:
        """As `LegsInTurn`."""
        return first.to_send()

    def read_handoff(self, answer: bytes, usage: Usage) -> Handoff:
        """As `LegsInTurn`."""
        return read_params(answer, usage)

    def decode_body(self, body: Body, handoff: Handoff) -> Encoded:  # noqa: ARG002  # nothing is handed over
        """As `LegsInTurn`."""
        return body.to_send()

    def fetch_body(self, first: Body, handoff: Handoff) -> Encoded | None:  # noqa: ARG002  # found by content
        """As `LegsInTurn`."""
        return None

    def release_body(self, least: Body, handoff: Handoff) -> bytes | None:  # noqa: ARG002  # nothing is held
        """As `LegsInTurn`."""
        return None

    def judge_pair(self, tried: TriedPair) -> list[Finding]:
        """As `Connector`."""
        return [hand_over.judged(tried, unreachable=_UNREACHABLE, itself=_ITSELF)]

    def judge_fleet(self, engines: Sequence[SeenEngine]) -> list[Finding]:  # noqa: ARG002  # any may meet
        """As `Connector`."""
        return []
