"""How long a client may take to send what it sends: a slow one does not hold a connection for ever.

None of it is a setting; who builds the edge may pass another `Patience`.
"""

import msgspec

HEAD_TIMEOUT_S = 20.0
"""From the first byte of a request's head to its last; what Apache's mod_reqtimeout gives a head."""

IDLE_CONNECTION_S = 75.0
"""How long a connection may be open without a request; nginx's keepalive_timeout."""

BODY_GRACE_S = 30.0
"""How long any body may take; what nginx waits for a piece of one is twice that."""

MIN_BODY_BYTES_S = 16 << 10
"""Each so many bytes that have come give a second more: a slow mobile uplink. mod_reqtimeout asks for 500
only, with which the largest body could take a day and a half."""

BODY_STALL_S = 10.0
"""What has come gives no more than this from now on: a body that came fast and then stops is not waited for
by its size. A connection that is handed from one mobile cell to another pauses for a few seconds."""

BODY_LOOK_EVERY_S = 1.0
"""How often a body under way is looked at."""


class Patience(msgspec.Struct, frozen=True):
    """Seconds that clients of one socket have for each thing; the constants of this module tell why."""

    head_s: float = HEAD_TIMEOUT_S
    idle_s: float = IDLE_CONNECTION_S
    body_grace_s: float = BODY_GRACE_S
    body_least_bytes_s: float = MIN_BODY_BYTES_S
    """Bytes a second, once the grace is over."""
    body_stall_s: float = BODY_STALL_S
    body_look_every_s: float = BODY_LOOK_EVERY_S


PATIENCE = Patience()
