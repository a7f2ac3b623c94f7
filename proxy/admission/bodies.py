"""The request bodies in memory never weigh more than the limit, however many clients send how much.

A body is charged as it is read, so what a client only announces takes nothing from others; one that does not fit
is refused before or while it is read. Once read it is charged for what is made of it, until its request ends.
"""

COPIES = 2
"""The body as it came, and as it is sent to an engine."""

VALUE_BYTES = 40
MEMBER_BYTES = 160
"""What a small value of a list, and a small member of an object, cost as Python objects on top of their text: a list
of token ids weighs 7 times its text, an object of tiny members 17 to 24 times (measured with CPython 3.11)."""


def weigh(data: bytes) -> int:
    """About how many bytes a JSON body takes while its request is served."""
    return COPIES * len(data) + VALUE_BYTES * data.count(b",") + MEMBER_BYTES * data.count(b'":')


class BodyLease:
    """What one request has taken of the budget; ends once."""

    def __init__(self, budget: "BodyBudget") -> None:
        self._budget = budget
        self._held_bytes = 0

    def hold(self, size_bytes: int) -> bool:
        """Hold so much from now on, more or less than before. False, and nothing changes, if it does not fit."""
        if not self._budget.change(self._held_bytes, size_bytes):
            return False
        self._held_bytes = size_bytes
        return True

    def end(self) -> None:
        """Give it all back."""
        self.hold(0)


class BodyBudget:
    """The memory all request bodies share."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def lease(self) -> BodyLease:
        """A share of nothing, to be grown."""
        return BodyLease(self)

    def fits(self, size_bytes: int) -> bool:
        """Whether so much more may be held now; a body that is alone always may."""
        return self.held_bytes == 0 or self.held_bytes + size_bytes <= self.limit_bytes

    def change(self, before_bytes: int, after_bytes: int) -> bool:
        """For leases only."""
        others_bytes = self.held_bytes - before_bytes
        if after_bytes > before_bytes and others_bytes and others_bytes + after_bytes > self.limit_bytes:
            return False
        self.held_bytes = others_bytes + after_bytes
        return True
