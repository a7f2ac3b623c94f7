"""What a connector is: how one request becomes the bodies of its legs, and what the doctor finds of it.

It sends nothing.
"""

from collections.abc import Sequence
from typing import Protocol

from proxy.connectors.handoff import Handoff
from proxy.connectors.seen import SeenEngine, TriedPair
from proxy.findings import Finding
from proxy.request.body import Body, Encoded
from proxy.request.dialects import Usage


class Connector(Protocol):
    """Pure: bodies in, bodies out. It adds what engines tell each other, and knows no other member of any
    route.
    """

    name: str
    """As settings have it."""
    how: str
    """How KV moves, in words that follow the name in `--help`."""
    holds: bool
    """Whether a finished prefill leg leaves blocks held on the prefill instance until they are fetched."""

    def prefill_body(self, first: Body) -> Encoded:
        """The body of the prefill leg. `first`: the client's request for its first token alone, not
        streamed.
        """
        ...

    def read_handoff(self, answer: bytes, usage: Usage) -> Handoff:
        """Read the answer of a prefill leg, whose usage is known. Raises ValueError if the decode leg needs
        more.
        """
        ...

    def decode_body(self, body: Body, handoff: Handoff) -> Encoded:
        """The body of the decode leg: the client's request, and the way to its prefilled blocks."""
        ...

    def fetch_body(self, first: Body, handoff: Handoff) -> Encoded | None:
        """The body of a leg that only brings the blocks to the decode instance; None where nothing is handed
        over. `first` as in `prefill_body`.

        It goes before the decode leg of a request for several sequences: each of them would fetch by itself
        what can be fetched once.
        """
        ...

    def release_body(self, least: Body, handoff: Handoff) -> bytes | None:
        """The body that makes a decode engine give a hold back; None without holds.

        `least`: the least request of the route that it is sent to.
        """
        ...

    def judge_pair(self, tried: TriedPair) -> list[Finding]:
        """What the doctor finds of a pair that a prompt was sent over; `hand_over.judged` judges the most of
        it.
        """
        ...

    def judge_fleet(self, engines: Sequence[SeenEngine]) -> list[Finding]:
        """What the doctor finds of all engines together; nothing where all is well."""
        ...
