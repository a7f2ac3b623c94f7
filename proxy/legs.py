"""One leg is one upstream request: it is claimed, sent, and when it fails the watch hears of it before anybody else."""

import enum
from collections.abc import Callable, Collection
from contextlib import ExitStack

import msgspec

from proxy.collaborators import Answer, Client, Watch
from proxy.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    DeadlineError,
    LegBrokenError,
    LegError,
    NoSocketError,
    StreamFailedError,
)
from proxy.exchange import Call, Reply
from proxy.headers import DATA_PARALLEL_RANK, REQUEST_ID
from proxy.instances import Fleet, Status
from proxy.placement import Placement, Question
from proxy.scheduling.decision import Decision
from proxy.scheduling.types import Candidate, Phase


class Reason(enum.StrEnum):
    """Why an attempt failed, for the accounts."""

    CONNECT = "connect"
    """No connection came about."""
    BROKEN = "broken"
    """The connection ended before the answer was complete, or the engine was given up."""
    DEADLINE = "deadline"
    """A phase took too long."""
    STATUS = "status"
    """The engine answered that it failed."""
    OTHER = "other"
    """The answer could not be used, the lease was nearly over, or the instance was removed meanwhile."""


class AttemptFailedError(Exception):
    """One attempt is over; nothing has reached the client."""

    def __init__(
        self,
        phase: Phase,
        instance: str,
        reply: Reply | None = None,
        cause: LegError | None = None,
        prefill_on: str | None = None,
        tried: Collection[str] = (),
    ) -> None:
        super().__init__(f"{phase} on {instance} failed")
        self.phase = phase
        self.instance = instance
        self.reply = reply  # the engine's own words, if it had any
        self.cause = cause
        self.prefill_on = prefill_on  # where the prompt is cached by now
        self.tried = tried  # the instances that could not be connected to before

    @property
    def reason(self) -> Reason:
        """Why, in one word."""
        if self.reply is not None:
            return Reason.STATUS
        if isinstance(self.cause, ConnectFailedError):
            return Reason.CONNECT
        if isinstance(self.cause, DeadlineError):
            return Reason.DEADLINE
        return Reason.BROKEN if isinstance(self.cause, LegBrokenError) else Reason.OTHER


class _Error(msgspec.Struct):
    message: str = ""


class _ErrorAnswer(msgspec.Struct):
    error: _Error


_decode_error = msgspec.json.Decoder(_ErrorAnswer).decode


class Legs:
    """What prefill and decode legs share."""

    def __init__(
        self, fleet: Fleet, placement: Placement, client: Client, watch: Watch, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._fleet = fleet
        self._placement = placement
        self._client = client
        self._watch = watch

    def claim(self, stack: ExitStack, chosen: Candidate, phase: Phase, question: Question) -> None:
        """Count a leg until `stack` closes. Raises AttemptFailedError if the instance has gone."""
        try:
            stack.enter_context(self._placement.claim(chosen, phase, question))
        except KeyError:
            cause = LegError(chosen.instance, "the instance was removed")
            raise AttemptFailedError(phase, chosen.instance, cause=cause) from None

    async def send(self, call: Call, chosen: Candidate, body: bytes) -> Answer:
        """Send a leg and wait for the head of its answer. Raises LegError."""
        headers = [*call.headers, (REQUEST_ID, call.leg_id)]
        instance = self._fleet.get(chosen.instance)
        if instance is not None and len(instance.ranks) > 1:
            headers.append((DATA_PARALLEL_RANK, str(chosen.rank)))
        return await self._client.post(chosen.instance, call.request.route.path, body, headers)

    def failed(self, error: LegError) -> None:
        """A leg got no complete answer."""
        instance = self._fleet.get(error.instance)
        if instance is not None:
            instance.last_failure = error.words
            self._watch.leg_failed(instance, error)

    def broke_off(self, error: StreamFailedError) -> None:
        """An engine ended a stream that had begun with an error event; it may be the client's own."""
        if not error.clients_own:
            self.failed(error)

    def began(self, address: str) -> None:
        """A leg began to stream what was asked for."""
        self._watch.leg_began(address)

    def served(self, address: str) -> None:
        """A leg was answered with what was asked for."""
        self._watch.leg_served(address)

    def worth_another(self, chosen: Candidate, status: int, body: bytes) -> bool:
        """Whether another instance may do better than this answer: the engine failed, and not for want of the feature.

        A 4xx is the client's own, with one exception: a rank that we named and the engine has no more. (A decode leg
        whose hold is gone vLLM answers with 500, or with 200.)
        """
        if status == 400 and self._rank_is_gone(chosen, body):
            self.failed(LegError(chosen.instance, f"it has no rank {chosen.rank} any more"))
            return True
        if status < 500 or status == 501:
            return False
        if (instance := self._fleet.get(chosen.instance)) is not None:
            instance.last_failure = f"status {status}"
        self._watch.leg_erred(chosen.instance)
        return True

    def _rank_is_gone(self, chosen: Candidate, body: bytes) -> bool:
        instance = self._fleet.get(chosen.instance)
        if instance is None or len(instance.ranks) == 1:
            return False  # none was named
        try:
            said = _decode_error(body).error.message
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        # At the beginning: engines quote what clients wrote, but not there.
        return said.startswith(f"data_parallel_rank {chosen.rank} is out of range")

    def to_leave(self, failure: AttemptFailedError) -> str | None:
        """The instance that is best left at once: it is dead, or failing while others are not; None if there is none.

        Moving elsewhere then adds no load: each request still costs the work of one.
        """
        return self.dead(failure) or (failure.instance if self._fails_alone(failure) else None)

    def _fails_alone(self, failure: AttemptFailedError) -> bool:
        if isinstance(failure.cause, NoSocketError):
            return False
        aside = self._fleet.set_aside(failure.phase, self._clock())
        if aside.get(failure.instance) not in {"failing", "half-open", "circuit open"}:
            return False
        return any(
            instance.why_unusable() is None and aside.get(instance.address) in {None, "slow start"}
            for instance in self._fleet.of(failure.phase)
        )

    def dead(self, failure: AttemptFailedError) -> str | None:
        """The instance that is known to be dead by now and whose death explains the failure; None if there is none.

        A decode leg also fails when the instance its blocks wait on has died.
        """
        cause = failure.cause
        if isinstance(cause, ConnectFailedError) and not isinstance(
            cause, NoSocketError | ConnectTimeoutError
        ):
            return failure.instance
        for address in (failure.instance, failure.prefill_on):
            instance = self._fleet.get(address) if address is not None else None
            if address is not None and (instance is None or instance.status is not Status.UP):
                return address
        return None

    def suspect(self, failure: AttemptFailedError) -> None:
        """Have the watch find out whether a death explains the failure."""
        for address in (failure.instance, failure.prefill_on):
            instance = self._fleet.get(address) if address is not None else None
            if instance is not None:
                self._watch.suspect(instance)


def chosen_of(decision: Decision, phase: Phase) -> Candidate:
    """Where the decision sends a leg; it must be an admissible one."""
    chosen = (decision.prefill if phase is Phase.PREFILL else decision.decode).chosen
    if chosen is None:
        raise RuntimeError(f"an admissible decision has no {phase} instance")
    return chosen
