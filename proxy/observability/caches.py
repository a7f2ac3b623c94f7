"""The series of KV events."""

from collections.abc import Mapping

from kvevents import Reason
from proxy.happenings import EventApplied, EventDropped, EventGap, EventsReplayed
from proxy.observability.family import Group
from proxy.observability.series import counter

DROPPED: Mapping[str, str] = {
    Reason.UNREADABLE: "a whole message is no batch: the rank is forgotten",
    Reason.UNKNOWN_TYPE: "an event of a type unknown here",
    Reason.BROKEN_EVENT: "blocks stored, with missing or wrong fields: they are not known",
    Reason.BROKEN_REMOVAL: "blocks removed, with missing or wrong fields: the rank is forgotten",
    Reason.PLACEHOLDER: "stored without tokens",
    Reason.MISALIGNED: "tokens do not divide evenly over the blocks",
    Reason.CACHE_GROUP: "of a group that holds no whole prefix",
    Reason.CACHE_KIND: "of a group of unknown kind",
    Reason.BLOCK_SIZE: "another than the instance's other blocks have, or than any engine has",
    Reason.LOOKAHEAD: "other tokens ahead than the instance's other blocks have, or than any engine has",
    Reason.TOKENS: "an id below 0 or above 32 bits",
    Reason.EXTRA_KEYS: "nested too deeply, or of an unknown kind",
    Reason.UNKNOWN_BLOCK: "removed, but never announced",
    Reason.ORPHAN_EVICTED: "waited for a parent until too many did",
    Reason.TIERS: "of more tiers than any engine has",
    Reason.FULL: "more blocks than one source may have",
}
"""Why blocks or events were dropped, by `kvevents.Reason`."""

CACHES = (
    counter(
        "kv_events",
        "KV events applied.",
        EventApplied,
        "type",
        per_instance=True,
        words={"type": dict.fromkeys(("BlockStored", "BlockRemoved", "AllBlocksCleared"), "")},
    ),
    counter("kv_event_gaps", "Gaps in an engine's event numbers.", EventGap, per_instance=True),
    counter("kv_event_replays", "Replays asked of an engine.", EventsReplayed, per_instance=True),
    counter(
        "kv_events_dropped",
        "KV events that could not be used.",
        EventDropped,
        "reason",
        amount="count",
        per_instance=True,
        words={"reason": DROPPED},
        more="Events, or blocks of them ([limits](security.md#event-sources)).",
    ),
)

ON_THE_PAGE = Group(
    "KV events",
    tuple(series.family for series in CACHES),
    "What engines publish of their caches. A gap makes an index [partial](failures.md#a-partial-index) only"
    " if the engine cannot replay what is missing.",
)
