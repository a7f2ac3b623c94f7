"""The request bodies in memory never exceed the limit, and no client takes all of it from the others.

A body is charged as it arrives, so a client takes nothing by announcing a body; one that does not fit is
refused before or while it is read. Once it is there it is charged for all that is made of it, until its
request ends; a short one that came with its head is charged for that alone.

What a client may hold depends on what is free: `SHARE` times as much as it leaves free (the dynamic
thresholds of Choudhury and Hahne, 1998, made for switches that share a buffer). So one client alone gets most
of the memory, several get equal parts, and there is always room for a new one. A part of the memory is for
small bodies alone, which are counted separately for each client: large bodies never keep small ones out, not
even of the same client.
"""

import asyncio
import contextlib
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

from proxy.admission.shown import BodiesShown
from proxy.request.outline import Outline, Signs

COPIES = 2
"""Copies of a body that are charged: as it came, and as it is sent to an engine."""

VALUE_BYTES = 40
MEMBER_BYTES = 160
"""The bytes that a small value of a list, or a small member of an object, takes as Python objects besides its
text.

A list of token ids takes 7 times its text, an object of tiny members 17 to 24 times (measured with CPython
3.11)."""

SHARE = 4
"""A client holds at most this many times what it leaves free: alone four fifths, two of them four ninths
each."""

RESERVE = 8
"""One part in this many of the memory is for small bodies alone."""

SMALL_BYTES = 1 << 20
"""The most bytes of a small body; prompts of 100 000 tokens are below it."""

SMALL_IN_RESERVE = 8
"""Where the limit is low, a small body has at most one part in this many of the reserve."""


NUMBER_BYTES = 8
"""The bytes of a number in a long flat list, which is read into an array."""


def weigh(data: bytes | bytearray, found: Outline | Signs) -> int:
    """About how many bytes a JSON body takes while its request is served; `found`: the counts of what it is
    made of.
    """
    if isinstance(found, Signs):
        value_bytes = NUMBER_BYTES if found.is_flat else VALUE_BYTES
        return COPIES * len(data) + value_bytes * found.commas + MEMBER_BYTES * found.members
    values_bytes = VALUE_BYTES * found.values + MEMBER_BYTES * found.members
    return COPIES * len(data) + values_bytes + NUMBER_BYTES * found.items


class _Held:
    """The bytes that bodies of one size class hold, all together and by client."""

    __slots__ = ("by_client", "total_bytes")

    def __init__(self) -> None:
        self.total_bytes = 0
        self.by_client: dict[Hashable, int] = {}

    def add(self, client: Hashable, size_bytes: int) -> None:
        self.total_bytes += size_bytes
        held_bytes = self.by_client.get(client, 0) + size_bytes
        if held_bytes:
            self.by_client[client] = held_bytes
        else:
            self.by_client.pop(client, None)


class BodyLease:
    """The bytes that one request holds of the budget; it ends once."""

    __slots__ = ("_budget", "_client", "_held_bytes", "_work")

    def __init__(self, budget: "BodyBudget", client: Hashable) -> None:
        self._budget = budget
        self._client = client
        self._held_bytes = 0
        self._work: Future[Any] | None = None

    def hold(self, size_bytes: int) -> bool:
        """Hold so many bytes from now on, more or less than before. Returns False, and changes nothing, if
        they do not fit.
        """
        if not self._budget.change(self._client, self._held_bytes, size_bytes):
            return False
        self._held_bytes = size_bytes
        return True

    def lasts(self, work: "Future[Any]") -> None:
        """The lease does not end before this work, which may go on in its thread after its caller has
        gone.
        """
        self._work = work

    def end(self) -> None:
        """Give all bytes back, as soon as no work uses them."""
        work, self._work = self._work, None
        if work is None or work.done():
            self.hold(0)
            return
        loop = asyncio.get_running_loop()

        def ended(_: "Future[Any]") -> None:
            with contextlib.suppress(RuntimeError):  # once the loop is closed no count matters
                loop.call_soon_threadsafe(self.end)

        work.add_done_callback(ended)


class BodyBudget:
    """The memory that all request bodies share."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.reserve_bytes = limit_bytes // RESERVE
        """The bytes that only small bodies may take."""
        self.small_bytes = min(SMALL_BYTES, self.reserve_bytes // SMALL_IN_RESERVE)
        self._small, self._large = _Held(), _Held()

    @property
    def held_bytes(self) -> int:
        """The bytes that all bodies hold now."""
        return self._small.total_bytes + self._large.total_bytes

    @property
    def clients(self) -> int:
        """The number of clients that hold any."""
        return len(self._small.by_client.keys() | self._large.by_client.keys())

    def status(self) -> BodiesShown:
        """For `/status`."""
        return BodiesShown(
            held_bytes=self.held_bytes,
            limit_bytes=self.limit_bytes,
            reserve_bytes=self.reserve_bytes,
            clients=self.clients,
        )

    def lease(self, client: Hashable) -> BodyLease:
        """A lease that holds nothing yet."""
        return BodyLease(self, client)

    def fits(self, client: Hashable, size_bytes: int, instead_of_bytes: int = 0) -> bool:
        """Whether a client may hold so many bytes for one body now; a body that is alone always fits.

        `instead_of_bytes`: what the client holds for this body already.
        """
        small, large = self._small, self._large
        small_bytes, large_bytes = small.total_bytes, large.total_bytes
        if size_bytes <= self.small_bytes:
            client_bytes = small.by_client.get(client, 0) - instead_of_bytes
            max_bytes = max(self.reserve_bytes, self.limit_bytes - large_bytes)
            left_bytes = max_bytes - (small_bytes - instead_of_bytes) - size_bytes
        else:
            client_bytes = large.by_client.get(client, 0)
            if instead_of_bytes <= self.small_bytes:
                small_bytes -= instead_of_bytes
            else:
                large_bytes -= instead_of_bytes
                client_bytes -= instead_of_bytes
            if large_bytes == 0:
                return True
            max_bytes = self.limit_bytes - max(small_bytes, self.reserve_bytes)
            left_bytes = max_bytes - large_bytes - size_bytes
        return left_bytes >= 0 and client_bytes + size_bytes <= SHARE * left_bytes

    def change(self, client: Hashable, before_bytes: int, after_bytes: int) -> bool:
        """Called by leases only."""
        if after_bytes > before_bytes and not self.fits(client, after_bytes, before_bytes):
            return False
        small_bytes = self.small_bytes
        before = self._small if before_bytes <= small_bytes else self._large
        after = self._small if after_bytes <= small_bytes else self._large
        if before is after:
            after.add(client, after_bytes - before_bytes)
        else:
            before.add(client, -before_bytes)
            after.add(client, after_bytes)
        return True
