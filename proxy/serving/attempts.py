"""The failed attempts of a request decide whether it may try again, where it should not go, and which
instances are to blame.

Pure: nothing is sent or awaited here.
"""

from collections import Counter
from collections.abc import Callable, Collection

from proxy.errors import NotSentError, OurTroubleError
from proxy.serving.exchange import Reply
from proxy.serving.legs.leg import AttemptFailedError, Reason


class Attempts:
    """The failed attempts of one request."""

    def __init__(self, most: int, avoid: Collection[str] = ()) -> None:
        """`most`: how many attempts may reach an engine, the first included; `avoid`: instances that have
        failed already.
        """
        self._most = most
        self._left: set[str] = set()
        self._failures: list[AttemptFailedError] = []
        self._not_here: list[str] = []
        self._words: Reply | None = None
        self.last: AttemptFailedError | None = None
        """How the last attempt failed."""
        self.avoid: dict[str, int] = dict.fromkeys(avoid, 1)
        """How often each instance was of no use; it is used again only if there is no other."""
        self.paid = 0
        """How many retries were paid from the budget."""
        self.is_paid = False
        """Whether the attempt that comes, or runs, is one of them: the budget is due back when it is over."""

    def failed_by(self, failure: AttemptFailedError) -> None:
        """Record why an attempt failed. One that a full engine turned away is no failure: no work was done,
        and the engine may be asked again.
        """
        self.last = failure
        if failure.reason is Reason.FULL:
            return
        self._words = failure.reply or self._words
        if failure.reason is Reason.NOT_HERE:
            self._not_here.append(failure.instance)
            self._avoids(failure.instance)
            return
        self._failures.append(failure)
        for instance in {failure.instance, *failure.tried}:
            self._avoids(instance)
        if failure.prefill_on is not None and failure.prefill_on in self._suspects():
            self._avoids(failure.prefill_on)

    def _avoids(self, instance: str) -> None:
        self.avoid[instance] = self.avoid.get(instance, 0) + 1

    @property
    def reply(self) -> Reply | None:
        """The last answer that an engine gave, other than that it is full; None if there was none."""
        return self._words

    @property
    def failure(self) -> AttemptFailedError | None:
        """The last failure, other than that an engine is full or lacks the model; None if there was none."""
        return self._failures[-1] if self._failures else None

    @property
    def free(self) -> bool:
        """Whether the next attempt is free because the engine did no work in the last one.

        Leaving an engine for want of the model is free once: it may go on listing a model it does not have.
        """
        if self.last is None or self.last.reason is Reason.FULL:
            return True
        return self.last.reason is Reason.NOT_HERE and self._not_here.count(self.last.instance) == 1

    @property
    def prefill_on(self) -> str | None:
        """The instance that has the prompt cached by now; None if there is none, or if it is to be avoided
        because decode legs repeatedly failed to fetch from it.
        """
        where = self.last.prefill_on if self.last is not None else None
        return None if where in self.avoid else where

    def to_blame(self, dead: Callable[[AttemptFailedError], str | None]) -> set[str]:
        """The instances to blame once another has served the request.

        `dead` returns the instance whose death explains a failure. An instance is not blamed if the blocks it
        needed were lost with the one that held them, if kvproxy itself had no socket, or if nothing was sent
        to it. Where several decode legs failed to fetch from the same prefill instance, that one is blamed.
        """
        blamed = set()
        suspects = self._suspects()
        for failure in self._failures:
            died = dead(failure)
            if isinstance(failure.cause, OurTroubleError | NotSentError) or (
                died is not None and died != failure.instance
            ):
                continue
            blamed.add(failure.prefill_on if failure.prefill_on in suspects else failure.instance)
        return {address for address in blamed if address is not None}

    def _suspects(self) -> set[str]:
        """The prefill instances that more than one decode leg has failed to fetch from."""
        tried = Counter(
            failure.prefill_on
            for failure in self._failures
            if failure.prefill_on is not None and failure.reason is not Reason.CONNECT
        )
        return {address for address, count in tried.items() if count > 1}

    @property
    def exhausted(self) -> bool:
        """Whether the request has failed on as many engines as it may reach, for whatever reason.

        The request itself may be what kills them, and no request may kill the whole fleet.
        """
        reached = sum(failure.reason is not Reason.CONNECT for failure in self._failures)
        return reached >= self._most

    def leave(self, dead: str | None) -> bool:
        """Whether the next attempt is free because it leaves the instance `dead`: once for each instance."""
        if dead is None or dead in self._left:
            return False
        self._left.add(dead)
        return True

    @property
    def may_pay(self) -> bool:
        """Whether the request may take one more retry from the budget."""
        return self.paid < self._most - 1
