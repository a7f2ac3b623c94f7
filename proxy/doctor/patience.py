"""How long the doctor waits for each answer, so that an engine that gives none is found in a bounded time."""

import msgspec

ASK_S = 10.0
"""Seconds for a question that an engine answers without computing; one that is starved of CPU takes
seconds."""

PROBE_S = 30.0
"""Seconds for the answer to a probe: a prompt of a few blocks, on an engine that may be at work."""

CONNECT_S = 5.0
"""Seconds for the handshake with a publisher, which takes a round trip."""

REPLAY_S = 15.0
"""Seconds for the replay of a whole buffer, while messages of it come."""

REPLAY_QUIET_S = 2.0
"""Seconds without a message after which a replay is over; vLLM answers within 0.1 s unless it is starved of
CPU."""

EVENT_S = 8.0
"""Seconds for the event of a probe that was answered; it is published before the answer."""


class Patience(msgspec.Struct, frozen=True):
    """Seconds for each kind of answer; the constants of this module say why."""

    ask_s: float = ASK_S
    probe_s: float = PROBE_S
    connect_s: float = CONNECT_S
    replay_s: float = REPLAY_S
    replay_quiet_s: float = REPLAY_QUIET_S
    event_s: float = EVENT_S


PATIENCE = Patience()
