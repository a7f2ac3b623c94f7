"""How KV gets from a prefill to a decode engine: one file a connector.

`base` is the contract: it makes the bodies of legs. When they are sent is decided in `serving.director`.
"""

from proxy.connectors.base import Connector, Handoff, asking_for_report
from proxy.connectors.nixl import NixlConnector
from proxy.connectors.shared import SharedConnector

CONNECTORS: dict[str, type[NixlConnector] | type[SharedConnector]] = {
    "nixl": NixlConnector,
    "shared": SharedConnector,
}

__all__ = ["CONNECTORS", "Connector", "Handoff", "NixlConnector", "SharedConnector", "asking_for_report"]
