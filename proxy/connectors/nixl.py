"""NIXL in pull mode: the prefill engine holds the blocks, its answer says where, and the decode engine
fetches them once.
"""

from collections.abc import Sequence

import msgspec

from proxy.connectors import nixl_findings
from proxy.connectors.handoff import Handoff, read_params
from proxy.connectors.plans import InTurn
from proxy.connectors.seen import SeenEngine, TriedPair
from proxy.findings import Finding
from proxy.request.body import Body, Encoded
from proxy.request.dialects import Usage
from proxy.request.generation import GenerationRequest

_ASK = {"kv_transfer_params": msgspec.Raw(b'{"do_remote_decode":true,"do_remote_prefill":false}')}

REFUSED_MODEL = "kvproxy-release-of-prefilled-blocks"
"""A model that no engine serves.

A request for it is refused before anything is computed or fetched; and when a vLLM decode engine refuses a
request with transfer params, it makes the prefill engine free the blocks."""


class NixlConnector:
    """vLLM's NixlConnector (NixlPullConnector)."""

    name = "nixl"
    how = "hands transfer params from leg to leg"

    def __init__(self) -> None:
        self._plan = InTurn(self, leased=True)

    def plan(self, request: GenerationRequest) -> InTurn:  # noqa: ARG002  # whatever it asks for
        """As `Connector`."""
        return self._plan

    def prefill_body(self, first: Body) -> Encoded:
        """As `LegsInTurn`."""
        return first.changed(_ASK).to_send()

    def read_handoff(self, answer: bytes, usage: Usage) -> Handoff:
        """As `LegsInTurn`."""
        handoff = read_params(answer, usage)
        if handoff.params is None:
            raise ValueError(
                "the prefill answer has no kv_transfer_params: is the engine started with"
                ' --kv-transfer-config \'{"kv_connector": "NixlConnector", ...}\'?'
            )
        return handoff

    def decode_body(self, body: Body, handoff: Handoff) -> Encoded:
        """As `LegsInTurn`."""
        return body.changed({"kv_transfer_params": handoff.params}).to_send()

    def fetch_body(self, first: Body, handoff: Handoff) -> Encoded | None:
        """As `LegsInTurn`."""
        return first.changed({"kv_transfer_params": handoff.params}).to_send()

    def release_body(self, least: Body, handoff: Handoff) -> bytes | None:
        """As `LegsInTurn`: a request that every engine refuses, whatever the client's own request looks
        like.
        """
        if handoff.params is None:
            return None
        return least.changed({"model": REFUSED_MODEL, "kv_transfer_params": handoff.params}).encoded()

    def judge_pair(self, tried: TriedPair) -> list[Finding]:
        """As `Connector`."""
        return nixl_findings.of_pair(tried)

    def judge_fleet(self, engines: Sequence[SeenEngine]) -> list[Finding]:
        """As `Connector`."""
        return nixl_findings.of_releases(engines)
