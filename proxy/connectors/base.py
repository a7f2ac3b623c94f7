"""What a connector is: the plan of a request, with the bodies of its legs, and what the doctor finds of it.

It sends nothing. It adds what engines tell each other, and knows no other member of any route.
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
    """As settings have it."""
    how: str
    """How KV moves, in words that follow the name in `--help`."""

    def plan(self, request: GenerationRequest) -> Plan:
        """In which order the legs of a request go. Asked before its instances are chosen: whether it is split
        decides which they may be.

        One instance serves it all the same where it does both, and each prompt of a list is planned by itself
        where a leg may hold one only.
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
