"""However many connections clients open, descriptors are left for engines, for probes and for operators.

What kvproxy uses for itself (event sources, files) is measured, since each is a descriptor like any other. Of
the rest a few are spare, for whoever asks after kvproxy's health or operates it; clients' connections and
those to engines share what remains: either may have what the other leaves, up to three quarters. When there
is no more the client's connection that has been idle for the longest is closed. Decisions only: who calls
opens and closes.
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
"""Connections kept for probes, and as many for an admin port: a few of each from every replica of a load
balancer."""

SPARE = 16
"""One descriptor in so many is spare."""

GUARANTEED = 4
"""Clients have one in so many of what they share with legs for certain, and legs too."""

MAX_COUNTED = 16_384
"""Up to this limit what is open is counted again and again; beyond, it is counted once, and a sixteenth is
left for what comes later."""

COUNTED_A_S = 16_384
"""So many descriptors are counted in a second at most, which takes some milliseconds: a limit of 1024 every
63 ms."""

UNLIMITED = 1 << 20
"""No machine has memory for more connections."""

WARN_EVERY_S = 60.0

CLOSING_S = 0.25
"""How long a descriptor may be open after its connection was told to close: a turn of the loop, were it slow.
TLS waits longer for a peer's goodbye, and so does what was written and is not read."""


class Place(enum.Enum):
    """What becomes of a connection that was accepted."""

    SHARED = "shared"
    SPARE = "spare"
    """A place for one answer, in which nothing is generated."""
    NONE = "none"


class Descriptors:
    """The descriptors of this process and who has them."""

    def __init__(
        self,
        limit: int,
        *,
        open_now: Callable[[], int | None],
        clock: Callable[[], float],
        tell: Tell,
        with_operators: bool,
    ) -> None:
        """`open_now` counts the open ones, None if it cannot; `clock` in seconds; `with_operators`: on a port
        of their own.
        """
        self.limit = limit if limit > 0 else UNLIMITED  # RLIM_INFINITY is -1
        self.spare = min(max(self.limit // SPARE, MIN_SPARE), MAX_SPARE)
        """Connections beyond the clients' share that are taken for one answer, and operators' in all."""
        self._for_operators = self.spare if with_operators else 0
        self._open_now = open_now
        self._clock = clock
        self._tell = tell
        self._own: int | None = None
        self._counted_at = 0.0
        self._warned_at = float("-inf")
        self._closed = {"idle": 0, "reading": 0, "refused": 0}
        self.clients = 0
        """Their connections with a share."""
        self.spares = 0
        self.operators = 0
        self._closing: dict[object, float] = {}
        """Connections that were told to close and are open, and since when, the last one last."""
        self.count_legs: Callable[[], int] = lambda: 0
        """How many connections to engines there are, told by who has them."""
        self.make_room: Callable[[], bool] = lambda: False
        """Close a client's connection that does nothing, or whose request is coming for long; False if there
        is none."""

    @property
    def closing(self) -> int:
        """Connections that have left their places and whose descriptors are closed in the loop's next turn:
        nobody's own. One that lingers, since its peer reads no more, is not among them.
        """
        since = self._clock() - CLOSING_S
        return sum(1 for _ in itertools.takewhile(lambda at: at > since, reversed(self._closing.values())))

    def closes(self, connection: object) -> None:
        """A connection was told to close; it has no place any more."""
        self._closing[connection] = self._clock()

    def has_closed(self, connection: object) -> None:
        """A connection is closed, told to or not."""
        self._closing.pop(connection, None)

    @property
    def legs(self) -> int:
        """Connections to engines."""
        return self.count_legs()

    @property
    def connections(self) -> int:
        """Of clients, with and without a share."""
        return self.clients + self.spares

    @property
    def shared(self) -> int:
        """What clients and legs have together."""
        return max(self.limit - self._own_now() - self.spare - self._for_operators, 2)

    def client_comes(self) -> Place:
        """A client has connected; its connection is counted from now on unless there is no place."""
        if not self._client_fits() and not (self.make_room() and self._client_fits()):
            if self.spares >= self.spare:
                self.closed("refused")
                return Place.NONE
            self.spares += 1
            return Place.SPARE
        self.clients += 1
        return Place.SHARED

    def client_leaves(self, place: Place) -> None:
        """One that had this place is closed, or about to be."""
        if place is Place.SHARED:
            self.clients -= 1
        elif place is Place.SPARE:
            self.spares -= 1

    def operator_leaves(self) -> None:
        """One that was counted is closed, or about to be."""
        self.operators -= 1

    def operator_comes(self, make_room: Callable[[], bool]) -> bool:
        """Somebody has connected to the admin port. True: that connection is counted from now on."""
        if self.operators >= self.spare and not make_room():
            self.closed("refused")
            return False
        self.operators += 1
        return True

    def leg_fits(self) -> bool:
        """Whether one that is to be opened, and is counted already, may be; a client may have to go for
        it.
        """
        legs, shared = self.legs, self.shared
        if legs > shared - shared // GUARANTEED:
            return False
        return self.clients + legs <= shared or self.make_room()

    def relieve(self) -> None:
        """Close connections until what is there fits: the process may have opened more for itself.

        At the very limit the system's connections are refused before anybody here hears of them.
        """
        while self.clients + self.legs > self.shared and self.make_room():
            pass

    def closed(self, reason: str) -> None:
        """A connection is closed for want of descriptors. Told in the log now and then."""
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
        """What is open beside connections."""
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
    """How many this process has open; None where that is not told."""
    try:
        with os.scandir("/proc/self/fd") as found:
            return sum(1 for _ in found)
    except OSError:  # no such place, or none left to look with
        return None
