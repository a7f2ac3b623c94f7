"""Connectors that share KV through a store of their own: the same request twice, no params between the
legs.
"""

from proxy.connectors.base import Handoff, read_params
from proxy.request.body import Body, Encoded
from proxy.request.dialects import Usage


class SharedConnector:
    """Shared storage, such as vLLM's ExampleConnector: prefill writes the blocks, decode finds them by
    content.
    """

    name = "shared"
    holds = False

    def prefill_body(self, first: Body) -> Encoded:
        """As `Connector`."""
        return first.to_send()

    def read_handoff(self, answer: bytes, usage: Usage) -> Handoff:
        """As `Connector`."""
        return read_params(answer, usage)

    def decode_body(self, body: Body, handoff: Handoff) -> Encoded:  # noqa: ARG002  # nothing is handed over
        """As `Connector`."""
        return body.to_send()

    def fetch_body(self, first: Body, handoff: Handoff) -> Encoded | None:  # noqa: ARG002  # found by content
        """As `Connector`."""
        return None

    def release_body(self, least: Body, handoff: Handoff) -> bytes | None:  # noqa: ARG002  # nothing is held
        """As `Connector`."""
        return None
