"""What kvproxy knows of the engines' caches survives it, on local disk, in a directory that it alone writes in."""

from proxy.state.collector import StateCollector
from proxy.state.directory import StateDirectory
from proxy.state.keeper import StateKeeper
from proxy.state.members import NOTHING, Present, Restored
from proxy.state.membership import Membership

__all__ = ["NOTHING", "Membership", "Present", "Restored", "StateCollector", "StateDirectory", "StateKeeper"]
