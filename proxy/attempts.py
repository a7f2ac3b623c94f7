"""What one request has tried so far, and whether it may try again. Pure: nothing is sent or awaited here."""

from proxy.exchange import Reply
from proxy.legs import AttemptFailedError, Reason


class Attempts:
    """The failed attempts of one request."""

    def __init__(self, most: int) -> None:
        """`most`: attempts that may be made at engines that live, the first included."""
        self._most = most
        self._left: set[str] = set()
        self.failed: set[str] = set()
        """The instances that were of no use."""
        self.last: AttemptFailedError | None = None
        """How the last one ended."""
        self.reply: Reply | None = None
        """The last words an engine had, if one had any."""
        self.paid = 0
        """How many retries were paid from the budget."""
        self._reached = 0

    @property
    def prefill_on(self) -> str | None:
        """Where the prompt is cached by now."""
        return self.last.prefill_on if self.last is not None else None

    def failed_by(self, failure: AttemptFailedError) -> None:
        """One more."""
        self.last = failure
        self.failed.add(failure.instance)
        if failure.reason is not Reason.CONNECT:
            self._reached += 1
        self.reply = failure.reply or self.reply

    @property
    def exhausted(self) -> bool:
        """Whether as many engines as may be have had the request in hand when it failed, for whatever reason.

        It may be what kills them: no request gets to kill them all.
        """
        return self._reached >= self._most

    def leave(self, dead: str | None) -> bool:
        """Whether the next attempt is free because an instance has died: once for each that did."""
        if dead is None or dead in self._left:
            return False
        self._left.add(dead)
        return True

    @property
    def may_pay(self) -> bool:
        """Whether one more retry may be asked of the budget."""
        return self.paid < self._most - 1
