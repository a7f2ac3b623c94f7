"""What one request has tried so far: where it should not go again, who is to blame, and whether it may try
again.

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
        """`most`: attempts that may be made at engines that live, the first included; `avoid`: failed
        already.
        """
        self._most = most
        self._left: set[str] = set()
        self._failures: list[AttemptFailedError] = []
        self._not_here: Counter[str] = Counter()
        self._words: Reply | None = None
        self.last: AttemptFailedError | None = None
        """How the last one ended."""
        self.avoid: Counter[str] = Counter(avoid)
        """The instances that were of no use, and how often: they are used again only if there is no other."""
        self.paid = 0
        """How many retries were paid from the budget."""

    def failed_by(self, failure: AttemptFailedError) -> None:
        """Note why an attempt failed. That a full engine turned it away does not count as a failure: no work
        was done, and the engine may be asked again.
        """
        self.last = failure
        if failure.reason is Reason.FULL:
            return
        self._words = failure.reply or self._words
        if failure.reason is Reason.NOT_HERE:
            self._not_here[failure.instance] += 1
            self.avoid[failure.instance] += 1
            return
        self._failures.append(failure)
        self.avoid.update({failure.instance, *failure.tried})
        if failure.prefill_on is not None and failure.prefill_on in self._suspects():
            self.avoid[failure.prefill_on] += 1

    @property
    def reply(self) -> Reply | None:
        """The last words an engine had, if one had any but that it is full."""
        return self._words

    @property
    def failure(self) -> AttemptFailedError | None:
        """How the last one ended that failed."""
        return self._failures[-1] if self._failures else None

    @property
    def free(self) -> bool:
        """Whether the next attempt is free because the engine did nothing in the last one.

        One that does not have the model is left once: it may claim again to have it.
        """
        if self.last is None or self.last.reason is Reason.FULL:
            return True
        return self.last.reason is Reason.NOT_HERE and self._not_here[self.last.instance] == 1

    @property
    def prefill_on(self) -> str | None:
        """Where the prompt is cached by now, unless its blocks could not be fetched from there again and
        again.
        """
        where = self.last.prefill_on if self.last is not None else None
        return None if where in self.avoid else where

    def to_blame(self, dead: Callable[[AttemptFailedError], str | None]) -> set[str]:
        """Who is to blame if another instance has served the request after all; `dead` tells whose death
        explains it.

        Not an instance that found the blocks of its request gone with the one that held them, and none for
        our own want of sockets, nor one that nothing was sent to. Where decode legs failed that were to fetch
        from one and the same instance, it is that one.
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
        """The instances that more than one decode leg has failed to fetch from."""
        tried = Counter(
            failure.prefill_on
            for failure in self._failures
            if failure.prefill_on is not None and failure.reason is not Reason.CONNECT
        )
        return {address for address, count in tried.items() if count > 1}

    @property
    def exhausted(self) -> bool:
        """Whether as many engines as may be have had the request in hand when it failed, for whatever reason.

        It may be what kills them: no request gets to kill them all.
        """
        reached = sum(failure.reason is not Reason.CONNECT for failure in self._failures)
        return reached >= self._most

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
