"""A slow client does not hold a connection for ever: this is how long it may take to send a request.

None of it is a setting; whoever builds the edge may pass another `Patience`.
"""

import msgspec

HEAD_TIMEOUT_S = 20.0
"""How long the head of a request may take, from its first byte to its last; as Apache's mod_reqtimeout."""

IDLE_CONNECTION_S = 75.0
"""How long a connection may be open without a request; nginx's keepalive_timeout."""

BODY_GRACE_S = 30.0
"""How long any body may take, however slow; nginx waits twice that for each piece of one."""

MIN_BODY_BYTES_S = 16 << 10
"""The least rate of a body beyond that, in bytes a second: every 16 KiB that arrive give it one more second.
It is the rate of a slow mobile uplink; mod_reqtimeout asks for 500, with which the largest body could take a
day and a half."""

BODY_STALL_S = 10.0
"""The most credit that a body may have at any moment: one that came fast and then stops is waited for no
longer, whatever its size. A connection that is handed from one mobile cell to another pauses for a few
seconds."""

BODY_LOOK_EVERY_S = 1.0
"""How often the progress of a body is checked."""


class Patience(msgspec.Struct, frozen=True):
    """The limits above, for the clients of one socket, in seconds."""

    head_s: float = HEAD_TIMEOUT_S
    idle_s: float = IDLE_CONNECTION_S
    body_grace_s: float = BODY_GRACE_S
    body_least_bytes_s: float = MIN_BODY_BYTES_S
    """In bytes a second, once the grace is over."""
    body_stall_s: float = BODY_STALL_S
    body_look_every_s: float = BODY_LOOK_EVERY_S


PATIENCE = Patience()
