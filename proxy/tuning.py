"""The figures that are no settings: how long kvproxy's own work waits, and how much of a prompt is read.

Each defaults to a constant of its room, which says why it has its value. Whoever assembles a service may pass
others.
"""

import msgspec

from proxy.caches.expected import SETTLE_S
from proxy.caches.trust import REBUILD_FIRST_S
from proxy.snapshots.keeper import LAST_S, UNCLAIMED_S
from proxy.snapshots.restorer import READ_S
from proxy.tokenizing.learning import LEARNING_WAITS, LearningWaits
from proxy.tokenizing.local.bounds import LIMITS, Limits
from proxy.upstream import names
from proxy.watching import adapters, changes, health, rounds
from proxy.watching.membership import kept


class Tuning(msgspec.Struct, frozen=True):
    """Seconds and limits of one service; the constant that each defaults to says what it is."""

    # -- engines
    gone_s: float = health.GONE_S
    look_every_s: float = rounds.LOOK_EVERY_S
    silent_s: float = changes.SILENT_S
    list_s: float = adapters.LIST_TIMEOUT_S
    list_again_s: float = adapters.ASK_AGAIN_S
    name_fresh_s: float = names.FRESH_S
    resolver_silent_s: float = names.SILENT_S
    # -- their caches
    settle_s: float = SETTLE_S
    rebuild_first_s: float = REBUILD_FIRST_S
    # -- the state directory
    write_instances_s: float = kept.WRITE_S
    read_snapshot_s: float = READ_S
    last_snapshots_s: float = LAST_S
    unclaimed_s: float = UNCLAIMED_S
    # -- prompts
    learning: LearningWaits = LEARNING_WAITS
    prompts: Limits = LIMITS


TUNING = Tuning()
