"""A leg is one upstream request under a claim; when it fails, the watch hears of it before the next decision
is made.
"""

import enum
import logging
import math
import time
from collections.abc import Callable, Collection
from weakref import WeakKeyDictionary

import msgspec

from proxy.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    DeadlineError,
    LegBrokenError,
    LegError,
    OurTroubleError,
    StreamFailedError,
)
from proxy.fleet import Fleet, Instance, Status
from proxy.fleet.denials import LEFT_OUT_S
from proxy.fleet.fullness import FULL, retry_after_s
from proxy.fleet.why import FAILS_LEGS, Why
from proxy.happenings import LegBegan, LegEnded, LegSent, Tell
from proxy.headers import DATA_PARALLEL_RANK, REQUEST_ID, RETRY_AFTER, Headers, value_of
from proxy.phases import Phase, Role
from proxy.request.body import Encoded
from proxy.request.uploads import Upload
from proxy.scheduling.question import Question
from proxy.scheduling.types import Candidate
from proxy.serving.exchange import Call, Handshake, Reply
from proxy.serving.learning import Learnt
from proxy.serving.placed import Placed
from proxy.serving.ports import Answer, Client, Socket, Uploaded, Watch

log = logging.getLogger(__name__)

UNAVAILABLE = 503
NOT_FOUND = 404


class Reason(enum.StrEnum):
    """Why an attempt failed: the word in happenings, metrics and the access log."""

    CONNECT = "connect"
    """No connection came about."""
    BROKEN = "broken"
    """The connection ended before the answer was complete, or the watch gave the engine up."""
    DEADLINE = "deadline"
    """The engine took longer than one of the deadlines."""
    STATUS = "status"
    """The engine answered that it failed."""
    FULL = "full"
    """The engine answered that it has no room."""
    NOT_HERE = "not_here"
    """The engine does not have the model, and another has."""
    OTHER = "other"
    """The answer could not be used, the lease was nearly over, or the instance was removed meanwhile."""


class AttemptFailedError(Exception):
    """An attempt failed, and nothing has reached the client."""

    def __init__(
        self,
        phase: Phase,
        instance: str,
        reply: Reply | None = None,
        cause: LegError | None = None,
        prefill_on: str | None = None,
        tried: Collection[str] = (),
        reason: Reason | None = None,
        after_s: float = 0.0,
    ) -> None:
        super().__init__(f"{phase} on {instance} failed")
        self._reason = reason
        self.phase = phase
        self.instance = instance
        self.reply = reply  # the engine's own answer, if it gave one
        self.cause = cause
        self.prefill_on = prefill_on  # the instance that has the prompt cached by now
        self.after_s = after_s  # seconds from the sending of the leg to its answer, if it was answered
        self.tried = tried  # the decode instances that the hold was offered to

    @property
    def reason(self) -> Reason:
        """Why the attempt failed, in one word."""
        if self._reason is not None:
            return self._reason
        if self.reply is not None:
            return Reason.STATUS
        return reason_of(self.cause)


def reason_of(cause: LegError | None) -> Reason:
    """Why a leg got no complete answer, in one word."""
    if isinstance(cause, ConnectFailedError):
        return Reason.CONNECT
    if isinstance(cause, DeadlineError):
        return Reason.DEADLINE
    return Reason.BROKEN if isinstance(cause, LegBrokenError) else Reason.OTHER


class _Error(msgspec.Struct):
    message: str = ""


class _ErrorAnswer(msgspec.Struct):
    error: _Error


_decode_error = msgspec.json.Decoder(_ErrorAnswer).decode


SERVED, REFUSED, LEFT = "served", "refused", "left"
"""The values of `LegEnded.outcome` for a leg that does not fail."""


class Leg:
    """A leg that is under way: its end is told once (`LegEnded`), and from when it is sent until its `end` it
    counts among its engine's running legs.

    `end` closes its answer and tells nothing; `over` tells how it went. Whoever may go away before it knows
    how it went calls `close`, which does both.
    """

    __slots__ = (
        "_answer",
        "_began_at",
        "_clock",
        "_running_on",
        "_tell",
        "_told",
        "chosen",
        "instance",
        "phase",
        "pulls_from",
        "said_full",
        "sent_at",
        "sequences",
        "stream",
    )

    def __init__(
        self, tell: Tell, clock: Callable[[], float], phase: Phase, chosen: Candidate, sequences: int = 1
    ) -> None:
        """`sequences`: how many the engine counts for it, each answer to each of its prompts one."""
        self._tell = tell
        self._clock = clock
        self._told = False
        self._answer: Answer | None = None
        self._running_on: Instance | None = None
        self.phase = phase
        self.sequences = sequences
        self.chosen = chosen
        """Where it goes."""
        self.instance: Instance | None = None
        """The instance that it was sent to; None if that had been removed."""
        self.said_full = False
        """Whether its engine answered it with that it is full."""
        self.sent_at = self._began_at = clock()
        """When it was sent, in seconds of the monotonic clock."""
        self.pulls_from: str | None = None
        """The instance whose blocks it is to fetch; None if it computes its prompt."""
        self.stream: Streaming | None = None
        """What it generates; None if its stream has not begun, or if nobody wants to know."""

    @property
    def age_s(self) -> float:
        """How many seconds ago it was sent."""
        return self._clock() - self.sent_at

    @property
    def beside(self) -> int:
        """How many other legs of ours the instance runs."""
        return (
            self.instance.fullness.legs - (self._running_on is not None) if self.instance is not None else 0
        )

    def sent(self, instance: Instance | None) -> None:
        """It is being sent: it counts on the instance, if that is still there."""
        self.instance = self._running_on = instance
        self.sent_at = self._clock()
        if instance is not None and instance.fullness.sent(self.sent_at, self.sequences):
            instance.announce()

    def answered(self, answer: Answer) -> None:
        """The head of its answer has arrived; `end` closes the answer."""
        self._answer = answer

    def end(self) -> None:
        """Its answer was read, is not read any further, or does not come. A second call does nothing."""
        answer, self._answer = self._answer, None
        try:
            if answer is not None:
                answer.close()
        finally:
            instance, self._running_on = self._running_on, None
            if instance is not None:
                instance.fullness.ended(self.sequences)

    def close(self) -> None:
        """Nobody waits for it any more: end it, and tell that, unless it was over before."""
        try:
            self.end()
        finally:
            self.over(LEFT)

    def over(
        self,
        outcome: str,
        learnt: Learnt | None = None,
        *,
        answered: bool = False,
        first_token_ms: float | None = None,
    ) -> None:
        """It is over: tell it. The arguments are fields of `LegEnded`. A second call does nothing."""
        if self._told:
            return
        self._told = True
        chosen = self.chosen
        began_at, ended_at = self._began_at, self._clock()
        prompt_tokens, predicted, reported = learnt or (None, None, None)
        first_token_at = generated = None
        whole = False
        if (stream := self.stream) is not None:
            prompt_tokens, generated, whole = stream.prompt_tokens, stream.generated, stream.whole
            first_token_at = None if whole else stream.began_at
        self._tell(
            LegEnded(
                self.phase,
                chosen.instance,
                chosen.rank,
                began_at,
                ended_at,
                outcome,
                answered,
                chosen.uncached_tokens,
                prompt_tokens,
                predicted,
                reported,
                first_token_ms,
                first_token_at,
                self.pulls_from,
                generated,
                self.sequences,
                whole,
            )
        )


class Streaming:
    """What a leg generates: its stream from the first token on, or, from its sending on, what comes whole."""

    __slots__ = ("began_at", "counts", "events", "prompt_tokens", "whole")

    def __init__(
        self, began_at: float, prompt_tokens: int, *, counts: bool = False, whole: bool = False
    ) -> None:
        """`prompt_tokens`: as `LegBegan.prompt_tokens`; `counts`: whether its events are to be counted;
        `whole`: whether it comes whole.
        """
        self.began_at = began_at
        self.prompt_tokens = prompt_tokens
        self.counts = counts
        self.whole = whole
        self.events: int | None = None
        """How many came after those of the first token, as far as the stream was passed on."""

    @property
    def generated(self) -> int | None:
        """Its tokens: each event has one, but for that which ends the stream."""
        return self.events or None


def _prompt_tokens(question: Question) -> int:
    return (question.prompt_tokens or question.estimated_tokens) // question.prompt_count


COUNT_EVERY_S = 0.2
"""Of the streams of an instance one is counted in this time: the time between two tokens is learned from
five a second as well as from all, and counting costs something for each chunk."""


class Legs:
    """What prefill and decode legs share."""

    def __init__(
        self,
        fleet: Fleet,
        client: Client,
        watch: Watch,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
        *,
        tell_streams: Tell | None = None,
    ) -> None:
        """`wall_clock`: seconds since 1970, for dates in the `Retry-After` of engines; `tell_streams`: tells
        that streams begin (`LegBegan`), which are then followed to their ends; None if nobody wants to know.
        """
        self._tell_streams = tell_streams
        self._counted_at: WeakKeyDictionary[Instance, float] = WeakKeyDictionary()
        """When a stream of an instance was counted last."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._fleet = fleet
        self._client = client
        self._watch = watch

    def check_there(self, placed: Placed) -> None:
        """Raise AttemptFailedError if a claimed instance was removed between the gate's grant and the moment
        its request went on.
        """
        for claim in placed.claims:
            address = claim.instance.address
            if self._fleet.get(address) is not claim.instance:
                cause = LegError(address, "the instance was removed")
                raise AttemptFailedError(claim.phase, address, cause=cause)

    async def send(self, leg: Leg, call: Call, body: Encoded) -> Answer:
        """Send a leg that is claimed, and wait for the head of its answer. Raises LegError.

        The leg MUST `end` before its claim does.
        """
        chosen = leg.chosen
        headers = self._sends(leg, call)
        try:
            answer = await self._client.post(chosen.instance, call.request.dialect.path, body, headers)
        except BaseException:
            leg.end()
            raise
        self._answers(leg, call, answer)
        return answer

    async def upload(self, leg: Leg, call: Call, body: Upload, limit_s: float) -> Uploaded:
        """Send a leg whose body is still arriving. Raises LegError, also if its engine reads nothing for
        `limit_s` seconds, and what reading the body raises.
        """
        headers = self._sends(leg, call)
        try:
            return await self._client.upload(
                leg.chosen.instance, call.request.dialect.path, body, headers, limit_s
            )
        except BaseException:
            leg.end()
            raise

    async def open(self, leg: Leg, call: Call, handshake: Handshake) -> Socket:
        """Open a WebSocket, or hear the engine's refusal. Raises LegError."""
        headers = self._sends(leg, call)
        path = call.request.dialect.path + handshake.query
        try:
            socket = await self._client.open(leg.chosen.instance, path, headers, handshake.protocols)
        except BaseException:
            leg.end()
            raise
        self._answers(leg, call, socket)
        return socket

    async def uploaded(self, leg: Leg, call: Call, sent: Uploaded) -> Answer:
        """Wait for the head of the answer to such a leg. Raises LegError."""
        try:
            answer = await sent.answer()
        except BaseException:
            leg.end()
            raise
        self._answers(leg, call, answer)
        return answer

    def _sends(self, leg: Leg, call: Call) -> Headers:
        """A leg is being sent. Returns its headers."""
        headers = [*call.headers, (REQUEST_ID, call.leg_id)]
        instance = self._fleet.get(leg.chosen.instance)
        if instance is not None and len(instance.ranks) > 1:
            headers.append((DATA_PARALLEL_RANK, str(leg.chosen.rank)))
        leg.sent(instance)
        return headers

    def _answers(self, leg: Leg, call: Call, answer: Answer) -> None:
        """The head of a leg's answer is there."""
        leg.answered(answer)
        instance = leg.instance
        if answer.status in FULL:
            retry_after = value_of(RETRY_AFTER, answer.headers)
            self._said_full(leg, retry_after_s(retry_after, self._wall_clock()))
        elif (
            answer.status != 200 or not answer.is_event_stream
        ):  # a stream may yet begin with that it is full
            self.took(leg)
        if instance is not None and instance.denials and answer.status == 200:
            instance.denials.served(call.request.model)

    def streams(self, leg: Leg, call: Call, question: Question, *, in_turn: bool) -> Streaming | None:
        """A leg's first token is there: tell it. `in_turn`: as `LegBegan.in_turn`.

        Returns the stream if its events are to be counted.
        """
        if (tell := self._tell_streams) is None:
            return None
        now, chosen, request = self._clock(), leg.chosen, call.request
        prompt_tokens = _prompt_tokens(question)
        known = question.prompt is not None and not request.whole
        counts = False
        if (instance := leg.instance) is not None and request.sequences == 1:
            counts = now - self._counted_at.get(instance, -math.inf) >= COUNT_EVERY_S
            if counts:
                self._counted_at[instance] = now
        leg.stream = Streaming(now, prompt_tokens, counts=counts)
        tell(
            LegBegan(
                chosen.instance,
                chosen.rank,
                leg.sent_at,
                now,
                prompt_tokens,
                chosen.uncached_tokens if known else None,
                leg.pulls_from,
                in_turn,
                leg.sequences,
            )
        )
        return leg.stream if counts else None

    def answers_whole(self, leg: Leg, question: Question) -> None:
        """A leg is about to be sent whose answer comes whole: tell it, if anybody wants to know."""
        if (tell := self._tell_streams) is not None:
            prompt_tokens = _prompt_tokens(question)
            leg.stream = Streaming(leg.sent_at, prompt_tokens, whole=True)
            tell(LegSent(leg.chosen.instance, leg.chosen.rank, leg.sent_at, prompt_tokens, leg.sequences))

    def took(self, leg: Leg) -> None:
        """The engine had room for the leg: it has begun to answer it."""
        if leg.instance is None or not leg.instance.fullness.is_known:
            return
        instance = self._still_there(leg)
        if instance is not None and instance.fullness.took(instance.fullness.legs, leg.sent_at):
            instance.announce()

    def _said_full(self, leg: Leg, come_back_s: float | None = None) -> None:
        leg.said_full = True
        if (instance := self._still_there(leg)) is not None:
            now = self._clock()
            if instance.fullness.most(now) is None:
                log.info("%s %s says that it is full", instance.role, instance.address)
            instance.fullness.said(now, leg.beside, leg.sent_at, come_back_s)

    def _still_there(self, leg: Leg) -> Instance | None:
        there = self._fleet.get(leg.chosen.instance)
        return there if there is leg.instance else None

    def why_gone(self, chosen: Candidate) -> str | None:
        """Why a leg that is claimed there would get no answer by now; None if it would get one.

        An instance that drains still takes legs that were claimed before.
        """
        instance = self._fleet.get(chosen.instance)
        if instance is None:
            return "the instance was removed"
        return None if instance.status is Status.UP else f"it is {instance.status} by now"

    def would_refuse(self, chosen: Candidate, model: str) -> bool:
        """Whether a leg that is claimed there would be refused, by what is known of its engine now."""
        instance = self._fleet.get(chosen.instance)
        if instance is None:
            return False
        fullness = instance.fullness
        is_full = fullness.is_known and not fullness.room(self._clock(), fullness.legs)
        return is_full or model not in instance.models

    def failed(self, error: LegError) -> None:
        """A leg got no complete answer: tell the watch."""
        instance = self._fleet.get(error.instance)
        if instance is not None:
            instance.leg_failed(error.words)
            self._watch.leg_failed(instance, error)

    def broke_off(self, error: StreamFailedError) -> None:
        """An engine ended a stream that had begun by an error event: a failure, unless the client is at
        fault.
        """
        if not error.clients_own:
            self.failed(error)

    def began(self, address: str) -> None:
        """A leg began to stream what was asked for: tell the watch."""
        self._watch.leg_began(address)

    def served(self, address: str) -> None:
        """A leg was answered with what was asked for: tell the watch."""
        self._watch.leg_served(address)

    def why_another(self, leg: Leg, call: Call, reply: Reply) -> Reason | None:
        """Why another attempt may do better than an engine's reply; None if the reply goes to the client.

        Another attempt may do better if the engine failed (a 5xx but 501), if it is full (which counts as no
        failure of it), or if it lacks a model that others have (not if it lacks the route). Any other 4xx is
        the client's own mistake, unless the engine no longer has the rank that kvproxy named. (vLLM answers a
        decode leg whose hold is gone with 500 or 200.)
        """
        status = reply.status
        if status == 200:
            return None
        chosen = leg.chosen
        instance = self._fleet.get(chosen.instance)
        if status in FULL:
            if not leg.said_full:  # it said so within a stream
                self._said_full(leg)
            if status == UNAVAILABLE and instance is not None:  # an engine that is dying answers so, too
                self._watch.suspect(instance)
            return Reason.FULL
        if status == NOT_FOUND and instance is not None:
            if isinstance(reply.body, bytes) and not call.request.dialect.lacks_model(reply.body):
                return None
            self._watch.suspect(instance)  # the check also reads anew which models it serves
            return Reason.NOT_HERE if self._others_serve(instance, leg.phase, call.request.model) else None
        if status == 400 and self._rank_is_gone(chosen, reply):
            self.failed(LegError(chosen.instance, f"it has no rank {chosen.rank} any more"))
            return Reason.STATUS
        if status < 500 or status == 501:
            return None
        if instance is not None:
            instance.leg_failed(f"status {status}")
        self._watch.engine_failed(chosen.instance)
        return Reason.STATUS

    def _others_serve(self, instance: Instance, phase: Phase, model: str) -> bool:
        """Whether other instances can serve the legs of an instance that lacks the model.

        If so, this instance is marked as lacking the model until the next check reads what it serves.
        """
        phases = tuple(Phase) if instance.role is Role.BOTH else (phase,)
        for each in phases:
            there = (other for other in self._fleet.of(each) if other is not instance)
            if not any(other.why_unusable(model) is None for other in there):
                return False
        if model in instance.models and instance.denials.denied(model, self._clock()):
            log.warning(
                "%s %s lists %r and answers 404 for it again: it gets none of it for %g s",
                instance.role,
                instance.address,
                model,
                LEFT_OUT_S,
            )
        instance.lacks(model)
        return True

    def _rank_is_gone(self, chosen: Candidate, reply: Reply) -> bool:
        instance = self._fleet.get(chosen.instance)
        if instance is None or len(instance.ranks) == 1:
            return False  # no rank was named
        body = reply.body if isinstance(reply.body, bytes) else b""
        try:
            said = _decode_error(body).error.message
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        # Only at the beginning: what follows may quote the client's own words.
        return said.startswith(f"data_parallel_rank {chosen.rank} is out of range")

    def to_leave(self, failure: AttemptFailedError) -> str | None:
        """The instance to leave at once, because it is dead or fails while others do not; None if there is
        none.

        Leaving it adds no load to the fleet: it does no work for the request anyway.
        """
        return self.dead(failure) or (failure.instance if self._fails_alone(failure) else None)

    def _fails_alone(self, failure: AttemptFailedError) -> bool:
        if isinstance(failure.cause, OurTroubleError):
            return False
        aside = self._fleet.set_aside(failure.phase, self._clock())
        if aside.get(failure.instance) not in FAILS_LEGS:
            return False
        return any(
            instance.why_unusable() is None and aside.get(instance.address) in {None, Why.SLOW_START}
            for instance in self._fleet.of(failure.phase)
        )

    def dead(self, failure: AttemptFailedError) -> str | None:
        """The instance whose death explains the failure, if it is known to be dead by now; else None.

        A decode leg also fails when the prefill instance that holds its blocks has died.
        """
        cause = failure.cause
        if isinstance(cause, ConnectFailedError) and not isinstance(
            cause, OurTroubleError | ConnectTimeoutError
        ):
            return failure.instance
        for address in (failure.instance, failure.prefill_on):
            instance = self._fleet.get(address) if address is not None else None
            if address is not None and (instance is None or instance.status is not Status.UP):
                return address
        return None

    def suspect(self, failure: AttemptFailedError) -> None:
        """Have the watch check the instances whose death would explain the failure."""
        for address in (failure.instance, failure.prefill_on):
            instance = self._fleet.get(address) if address is not None else None
            if instance is not None:
                self._watch.suspect(instance)
