"""The configuration: plain values, checked once; each setting is described once, beside its field.

    service    `Config`: its sections, and the settings that are in none: engines, routing, the service itself
    faults     deadlines, retries, checks of engines
    overload   limits, and how requests wait
    security   who may ask for what
    cors       browsers
    recording  what is recorded of the traffic
    state      what is kept for the next process
    instances  one engine as it is named
    allowed    which instances may be added
    tiers      what reloading from slower tiers costs
    settings   what a declaration is, and what is made of it
    sources    flag, environment, file: which of them counts
    rules      settings that are looked up each time they are used

A new setting is a field of a section; `python -m proxy.cli.reference docs/settings.md` writes its line there.
"""

from proxy.config.allowed import AllowedInstances
from proxy.config.cors import Cors
from proxy.config.faults import Deadlines, Health, Retries
from proxy.config.instances import EventSource, InstanceSpec, as_text, parse_instance
from proxy.config.overload import Admission, WhenNoPrefill
from proxy.config.recording import Recordings
from proxy.config.rules import Rules
from proxy.config.security import Security
from proxy.config.service import LEASE_MARGIN_S, Config
from proxy.config.state import State
from proxy.config.tiers import MAIN_TIER, TIER_COSTS, read_tier_costs

__all__ = [
    "LEASE_MARGIN_S",
    "MAIN_TIER",
    "TIER_COSTS",
    "Admission",
    "AllowedInstances",
    "Config",
    "Cors",
    "Deadlines",
    "EventSource",
    "Health",
    "InstanceSpec",
    "Recordings",
    "Retries",
    "Rules",
    "Security",
    "State",
    "WhenNoPrefill",
    "as_text",
    "parse_instance",
    "read_tier_costs",
]
