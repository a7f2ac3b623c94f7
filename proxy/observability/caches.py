"""What is counted of KV events."""

from proxy.happenings import EventApplied, EventDropped, EventGap, EventsReplayed
from proxy.observability.series import counter

CACHES = (
    counter("kv_events", "KV events applied.", EventApplied, "type", per_instance=True),
    counter("kv_event_gaps", "Gaps in an engine's event numbers.", EventGap, per_instance=True),
    counter("kv_event_replays", "Replays asked of an engine.", EventsReplayed, per_instance=True),
    counter(
        "kv_events_dropped",
        "KV events that could not be used.",
        EventDropped,
        "reason",
        amount="count",
        per_instance=True,
    ),
)
