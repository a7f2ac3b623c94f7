"""How KV gets from a prefill to a decode engine: one file for each connector.

    base        the contract: a plan for each request, and what the doctor finds
    plans       in which order legs go, and the bodies that each order needs
    handoff     what a prefill engine answers that a decode leg needs
    reports     a prefill leg that also has its engine report its cache
    seen        what the doctor saw of a pair, and of a fleet, as values
    hand_over   whether KV went over, as any connector judges it
    nixl        with its releases (`nixl_versions`), and what the doctor finds (`nixl_findings`)
    shared      engines with a store of their own

`CONNECTORS` is all that settings need of them. Plans are carried out in `serving.handover`.
"""

from collections.abc import Mapping

from proxy.connectors.base import Connector
from proxy.connectors.handoff import Handoff
from proxy.connectors.nixl import NixlConnector
from proxy.connectors.reports import asking_for_report
from proxy.connectors.shared import SharedConnector
from proxy.errors import ConfigError

CONNECTORS: Mapping[str, type[Connector]] = {
    NixlConnector.name: NixlConnector,
    SharedConnector.name: SharedConnector,
}
"""The connectors by the names that `--connector` takes."""

__all__ = [
    "CONNECTORS",
    "Connector",
    "Handoff",
    "NixlConnector",
    "SharedConnector",
    "asking_for_report",
    "load_connector",
]


def load_connector(name: str) -> Connector:
    """A connector by its name. Raises ConfigError."""
    if name not in CONNECTORS:
        raise ConfigError(f"--connector {name!r} is not known: give one of {', '.join(CONNECTORS)}")
    return CONNECTORS[name]()
