"""Connectors that share KV through a store of their own: the same request twice, no params between the legs."""

from proxy.body import Body
from proxy.connectors.base import Handoff, one_token, read_answer


class SharedConnector:
    """Shared storage, such as vLLM's ExampleConnector: prefill writes the blocks, decode finds them by content."""

    name = "shared"
    holds = False

    def prefill_body(self, body: Body) -> bytes:
        """As `Connector`."""
        return one_token(body).encoded()

    def read_handoff(self, answer: bytes) -> Handoff:
        """As `Connector`."""
        return read_answer(answer)

    def decode_body(self, body: Body, handoff: Handoff) -> bytes:  # noqa: ARG002  # nothing is handed over
        """As `Connector`."""
        return body.encoded()

    def fetch_body(self, body: Body, handoff: Handoff) -> bytes | None:  # noqa: ARG002  # found by content
        """As `Connector`."""
        return None

    def release_body(self, handoff: Handoff) -> bytes | None:  # noqa: ARG002  # nothing is held
        """As `Connector`."""
        return None
