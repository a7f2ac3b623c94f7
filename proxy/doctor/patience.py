"""How long the doctor waits for each answer; an engine that gives none is found out in a bounded time."""

import msgspec

ASK_S = 10.0
"""For a question that an engine answers without computing; one that is starved of CPU takes seconds."""

PROBE_S = 30.0
"""For a probe's answer: a prompt of a few blocks, on an engine that may be at work."""

CONNECT_S = 5.0
"""For a publisher to shake hands; it takes a round trip."""

REPLAY_S = 15.0
"""For the replay of a whole buffer, as long as something comes of it."""

REPLAY_QUIET_S = 2.0
"""A replay that is silent for so long is over; vLLM answers within 0.1 s unless it is starved of CPU."""

EVENT_S = 8.0
"""For the event of a probe that was answered; it is published before the answer."""


class Patience(msgspec.Struct, frozen=True):
    """Seconds for each of these; the constants of this module tell why."""

    ask_s: float = ASK_S
    probe_s: float = PROBE_S
    connect_s: float = CONNECT_S
    replay_s: float = REPLAY_S
    replay_quiet_s: float = REPLAY_QUIET_S
    event_s: float = EVENT_S


PATIENCE = Patience()
