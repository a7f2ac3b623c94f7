"""However many connections clients open, file descriptors are left for engines, for probes and for operators.

What kvproxy uses for itself (event sources, files) is measured. Of the rest a few descriptors are spare, for
probes and operators. Clients' connections and connections to engines share what remains: either may take what
the other leaves, up to three quarters. When none is left, the client's connection that has been idle for the
longest is closed. This file only decides; its callers open and close.
"""

import enum
import itertools
import logging
import os
from collections.abc import Callable

from proxy.happenings import ConnectionClosed, Tell

log = logging.getLogger(__name__)

MAX_SPARE = 128
MIN_SPARE = 4
"""The most and the least descriptors that are spare, for probes, and as many again for an admin port: enough
for a few connections from every replica of a load balancer."""

SPARE = 16
"""One descriptor in this many is spare."""

GUARANTEED = 4
"""One in this many of the shared descriptors is for clients alone, and one for connections to engines
alone."""

MAX_COUNTED = 16_384
"""With a limit up to this, open descriptors are counted again and again; with a larger one they are counted
once, and a sixteenth of the limit is left for those that kvproxy opens for itself later."""

COUNTED_A_S = 16_384
"""How many descriptors are counted in a second at most, which takes some milliseconds: with a limit of 1024
they are counted every 63 ms."""

UNLIMITED = 1 << 20
"""The number that stands for no limit: no machine has memory for more connections."""

WARN_EVERY_S = 60.0
"""How often the log says at most that descriptors are short."""

CLOSING_S = 0.25
"""How long the descriptor of a closing connection is expected to stay open: a turn of the loop, even a slow
one. Some take longer: TLS waits for the peer's goodbye, and what was written may wait to be read."""


class Place(enum.Enum):
    """What becomes of a connection that was accepted."""

    SHARED = "shared"
    """It has one of the shared descriptors."""
    SPARE = "spare"
    """It has a spare descriptor: it gets one answer, and none that generates."""
    NONE = "none"
    """It is closed."""


class Descriptors:
    """Counts the file descriptors of this process, and decides who may have one."""

    def __init__(
        self,
        limit: int,
        *,
        open_now: Callable[[], int | None],
        clock: Callable[[], float],
        tell: Tell,
        with_operators: bool,
    ) -> None:
        """`limit`: that of open files (RLIMIT_NOFILE); `open_now` counts the open descriptors, None if it
        cannot; `clock`: any monotonic seconds; `with_operators`: whether operators have a port of their own.
        """
        self.limit = limit if limit > 0 else UNLIMITED  # RLIM_INFINITY is -1
        self.spare = min(max(self.limit // SPARE, MIN_SPARE), MAX_SPARE)
        """How many connections get a spare place at once; with an admin port, as many there in all."""
        self._for_operators = self.spare if with_operators else 0
        self._open_now = open_now
        self._clock = clock
        self._tell = tell
        self._own: int | None = None
        self._counted_at = 0.0
        self._warned_at = float("-inf")
        self._closed = {"idle": 0, "reading": 0, "refused": 0}
        self.clients = 0
        """Clients' connections with a shared place."""
        self.spares = 0
        """Clients' connections with a spare place."""
        self.operators = 0
        """Connections to the admin port."""
        self._closing: dict[object, float] = {}
        """When connections that are still open were told to close; the last one last."""
        self.count_legs: Callable[[], int] = lambda: 0
        """Counts the connections to engines; set by the pool of these."""
        self.make_room: Callable[[], bool] = lambda: False
        """Closes a client's connection that is idle, or whose request has been arriving for long; False if
        there is none. Set by the door of the clients' socket."""

    @property
    def closing(self) -> int:
        """How many connections were told to close within CLOSING_S and are open: they have no place any more,
        and are not counted as kvproxy's own files either.
        """
        since = self._clock() - CLOSING_S
        return sum(1 for _ in itertools.takewhile(lambda at: at > since, reversed(self._closing.values())))

    def closes(self, connection: object) -> None:
        """A connection was told to close, and has no place any more."""
        self._closing[connection] = self._clock()

    def has_closed(self, connection: object) -> None:
        """A connection is closed, by either side."""
        self._closing.pop(connection, None)

    @property
    def legs(self) -> int:
        """How many connections to engines there are."""
        return self.count_legs()

    @property
    def connections(self) -> int:
        """How many connections of clients there are, with shared and spare places."""
        return self.clients + self.spares

    @property
    def shared(self) -> int:
        """How many descriptors clients and legs have together."""
        return max(self.limit - self._own_now() - self.spare - self._for_operators, 2)

    def client_comes(self) -> Place:
        """A client has connected. Its connection is counted from now on unless its place is Place.NONE."""
        if not self._client_fits() and not (self.make_room() and self._client_fits()):
            if self.spares >= self.spare:
                self.closed("refused")
                return Place.NONE
            self.spares += 1
            return Place.SPARE
        self.clients += 1
        return Place.SHARED

    def client_leaves(self, place: Place) -> None:
        """A client's connection with this place is closed, or about to be."""
        if place is Place.SHARED:
            self.clients -= 1
        elif place is Place.SPARE:
            self.spares -= 1

    def operator_leaves(self) -> None:
        """A connection to the admin port is closed, or about to be."""
        self.operators -= 1

    def operator_comes(self, make_room: Callable[[], bool]) -> bool:
        """An operator has connected to the admin port. True: the connection is counted from now on.

        `make_room` closes another connection of that port; False if it cannot.
        """
        if self.operators >= self.spare and not make_room():
            self.closed("refused")
            return False
        self.operators += 1
        return True

    def leg_fits(self) -> bool:
        """Whether a connection to an engine, which `count_legs` counts already, may be opened. A client's
        connection may be closed for it.
        """
        legs, shared = self.legs, self.shared
        if legs > shared - shared // GUARANTEED:
            return False
        return self.clients + legs <= shared or self.make_room()

    def relieve(self) -> None:
        """Close clients' connections until all that are left have a descriptor: kvproxy may have opened more
        for itself.

        At the very limit the system refuses new connections before kvproxy hears of them.
        """
        while self.clients + self.legs > self.shared and self.make_room():
            pass

    def closed(self, reason: str) -> None:
        """A connection was closed for want of descriptors: tell it, and log it every WARN_EVERY_S."""
        self._tell(ConnectionClosed(reason))
        self._closed[reason] += 1
        now = self._clock()
        if now - self._warned_at < WARN_EVERY_S:
            return
        self._warned_at = now
        log.warning(
            "file descriptors are short: of %d (ulimit -Hn), clients have %d and engines %d; since this was "
            "said last %d idle connections, and %d whose requests were still coming, were closed and %d new "
            "ones refused",
            self.limit,
            self.connections,
            self.legs,
            self._closed["idle"],
            self._closed["reading"],
            self._closed["refused"],
        )
        self._closed = dict.fromkeys(self._closed, 0)

    def _client_fits(self) -> bool:
        shared = self.shared
        return self.clients < shared - shared // GUARANTEED and self.clients + self.legs < shared

    def _own_now(self) -> int:
        """How many descriptors are open that are no connections."""
        now = self._clock()
        often = self.limit <= MAX_COUNTED
        if self._own is None or (often and now - self._counted_at >= self.limit / COUNTED_A_S):
            self._counted_at = now
            if (found := self._open_now()) is not None:
                of_connections = self.connections + self.operators + self.legs + self.closing
                own = max(found - of_connections, 0)
                self._own = own if often else own + self.limit // SPARE
        return self._own or 0


def open_descriptors() -> int | None:
    """How many descriptors this process has open; None if the system does not say."""
    try:
        with os.scandir("/proc/self/fd") as found:
            return sum(1 for _ in found)
    except OSError:  # there is no /proc, or no descriptor left to read it with
        return None
