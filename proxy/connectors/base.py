"""A connector makes the plan of a request, with the bodies of its legs, and the doctor's findings about it.

It sends nothing. It adds to bodies what engines say to each other, and knows no other member of any route.
"""

from collections.abc import Sequence
from typing import Protocol

from proxy.connectors.plans import Plan
from proxy.connectors.seen import SeenEngine, TriedPair
from proxy.findings import Finding
from proxy.request.generation import GenerationRequest


class Connector(Protocol):
    """Pure: requests and bodies in, plans and bodies out."""

    name: str
    """The name in settings."""
    how: str
    """How KV moves, in words that follow the name in `--help`."""

    def plan(self, request: GenerationRequest) -> Plan:
        """The order in which the legs of a request go. It is called before instances are chosen, because
        whether a request is split decides which instances may serve it.

        An instance that does both serves a request alone, whatever the plan. Where a leg may hold one prompt
        only, each prompt of a list is planned by itself.
        """
        ...

    def judge_pair(self, tried: TriedPair) -> list[Finding]:
        """The findings about a pair that a prompt was sent over; `hand_over.judged` makes most of them."""
        ...

    def judge_fleet(self, engines: Sequence[SeenEngine]) -> list[Finding]:
        """The findings about all engines together; none if all is well."""
        ...
