"""Who the instances are, whether they can be used, and where they publish their KV events."""

from proxy.caches.believing import Believing
from proxy.caches.feeds import EventFeeds
from proxy.discovery.adapters import Adapters, Told
from proxy.discovery.startup import StartupError
from proxy.discovery.watch import FleetWatch

__all__ = ["Adapters", "Believing", "EventFeeds", "FleetWatch", "StartupError", "Told"]
