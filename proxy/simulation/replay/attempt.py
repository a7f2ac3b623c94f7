"""All that an attempt has taken it gives back once, whichever engine dies under it.

It sends the legs that a decision says, in turn: what the prefill leg has claimed ends with its answer, the
claim of the leg that generates with the last token. A hold that no decode leg will fetch is released.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kvevents import Keys
from proxy.admission import Admitted, Ticket
from proxy.happenings import LegBegan, LegEnded, Tell
from proxy.phases import Phase
from proxy.scheduling.decision import Pick
from proxy.scheduling.types import Candidate
from proxy.simulation.replay.baselines import Follows
from proxy.simulation.replay.instance import ReplayedInstance
from proxy.simulation.replay.job import Job, Pulled
from proxy.simulation.replay.records import Record
from proxy.simulation.replay.timeline import Timeline
from proxy.traces.workload import TraceRequest


class Call:
    """A request from its arrival to its end."""

    __slots__ = ("failed", "keys", "number", "over", "record", "request", "ticket")

    def __init__(
        self, number: int, request: TraceRequest, record: Record, keys: Keys, over: Callable[[], None]
    ) -> None:
        """`number`: of the request in its workload; `keys`: the names of its blocks; `over`: called when it
        has ended.
        """
        self.number = number
        self.request = request
        self.record = record
        self.keys = keys
        self.over = over
        self.ticket = Ticket()
        self.ticket.keep()
        self.failed: Counter[str] = Counter()
        """How often it has failed on which instance."""


class World(NamedTuple):
    """What attempts act on, and who hears of them."""

    time: Timeline
    engines: Mapping[str, ReplayedInstance]
    legs: "dict[Job, Attempt]"
    """The legs that run."""
    sent: Counter[str]
    """How many of them run on which instance."""
    tell: Tell | None
    """Who hears how legs go; None if nobody does."""
    follows: Follows | None
    served: Callable[[Call], None]
    failed: Callable[[Call], None]


class Attempt:
    """One attempt at a call."""

    def __init__(self, world: World, call: Call, admitted: Admitted) -> None:
        """Take over the claims of `admitted`, and send the first leg."""
        self._world = world
        self._call = call
        self._admitted = admitted
        self._prefill = _chosen(admitted.decision.prefill)
        self._decode = _chosen(admitted.decision.decode)
        self._hold: Pulled | None = None
        self._sent_s = 0.0
        """When the leg that runs was sent."""
        call.record.attempts += 1
        call.record.prefill_on, call.record.decode_on = self._prefill.instance, self._decode.instance
        call.record.bypassed = admitted.decision.bypass is not None
        if world.follows is not None:
            world.follows.began(call.number, self._prefill, self._decode, call.request.input_tokens)
        if admitted.prefill is None:
            self._send(self._decode.instance, self._generating(None))
        else:
            job = self._job("prefill", 1, hold=True)
            job.begun = self._prefilled
            self._send(self._prefill.instance, job)

    def _job(self, leg: str, output_tokens: int, *, hold: bool = False, pull: Pulled | None = None) -> Job:
        call = self._call
        return Job(
            f"{call.number}-{call.record.attempts}-{leg}",
            call.request.input_tokens,
            output_tokens,
            call.keys.tolist(),
            hold=hold,
            pull=pull,
            failed=self.lost,
        )

    def _generating(self, pull: Pulled | None) -> Job:
        job = self._job("decode", max(1, self._call.request.output_tokens), pull=pull)
        job.begun, job.ended = self._first_token, self._last_token
        return job

    def _send(self, address: str, job: Job) -> None:
        self._world.legs[job] = self
        self._world.sent[address] += 1
        self._sent_s = self._world.time.now_s
        engine = self._world.engines[address]
        if engine.alive:
            engine.add(job)
        else:
            self.lost(job, address)

    def _prefilled(self, job: Job) -> None:
        """The prefill leg is answered."""
        self._over(job, self._prefill)
        self._tell_end(Phase.PREFILL, self._prefill, "served", self._length, reported=job.local_hit)
        self._call.record.reused_tokens = job.local_hit
        self._computed()
        engine = self._world.engines[self._prefill.instance]
        self._hold = Pulled(engine, job, engine.life)
        self._send(self._decode.instance, self._generating(self._hold))

    def _computed(self) -> None:
        admitted = self._admitted
        if admitted.prefill is not None:
            admitted.prefill.end()
        else:
            admitted.decode.computed()
        admitted.expected.settle(came=True)
        if self._world.follows is not None:
            self._world.follows.computed(self._call.number)

    def _first_token(self, job: Job) -> None:
        record = self._call.record
        record.first_token_s = self._world.time.now_s
        self._tell_began()
        self._hold = None
        if self._admitted.prefill is None:
            record.reused_tokens = job.local_hit
            self._computed()
        else:
            self._admitted.decode.computed()
            record.external_tokens = job.external_hit

    def _last_token(self, job: Job) -> None:
        self._over(job, self._decode)
        self._tell_end(
            Phase.DECODE,
            self._decode,
            "served",
            self._length,
            first_token_at=job.first_token_s,
            generated=job.generated,
        )
        self._close()
        self._world.served(self._call)

    def lost(self, job: Job, address: str) -> None:
        """The engine at `address` has failed a leg."""
        generates = not job.hold
        candidate = self._decode if generates else self._prefill
        self._over(job, candidate)
        self._tell_end(
            Phase.DECODE if generates else Phase.PREFILL,
            candidate,
            "broken" if self._world.engines[candidate.instance].alive else "connect",
            None if job.first_token_s is None else self._length,
            first_token_at=job.first_token_s,
            generated=job.generated,
        )
        if (hold := self._hold) is not None and hold.engine.life == hold.life:
            hold.engine.let_go(hold.job, pulled=False)
        self._close()
        self._call.failed[address] += 1
        self._world.failed(self._call)

    # -- what is told ---------------------------------------------------------------------------------------

    @property
    def _length(self) -> int:
        return self._call.request.input_tokens

    @property
    def _pulled_from(self) -> str | None:
        return None if self._admitted.prefill is None else self._prefill.instance

    def _over(self, job: Job, candidate: Candidate) -> None:
        del self._world.legs[job]
        self._world.sent[candidate.instance] -= 1

    def _tell_began(self) -> None:
        if (tell := self._world.tell) is None:
            return
        chosen = self._decode
        tell(
            LegBegan(
                chosen.instance,
                chosen.rank,
                self._sent_s,
                self._world.time.now_s,
                self._length,
                chosen.uncached_tokens if self._known else None,
                self._pulled_from,
            )
        )

    @property
    def _known(self) -> bool:
        return self._admitted.question.prompt is not None

    def _tell_end(
        self,
        phase: Phase,
        candidate: Candidate,
        outcome: str,
        prompt_tokens: int | None,
        *,
        reported: int | None = None,
        first_token_at: float | None = None,
        generated: int | None = None,
    ) -> None:
        if (tell := self._world.tell) is None:
            return
        tell(
            LegEnded(
                phase,
                candidate.instance,
                candidate.rank,
                self._sent_s,
                self._world.time.now_s,
                outcome,
                outcome == "served",
                candidate.uncached_tokens if self._known else None,
                prompt_tokens,
                None,
                reported,
                None,
                first_token_at,
                self._pulled_from if phase is Phase.DECODE else None,
                generated,
            )
        )

    # -- the end --------------------------------------------------------------------------------------------

    def _close(self) -> None:
        self._hold = None
        self._admitted.close()
        if self._world.follows is not None:
            self._world.follows.ended(self._call.number)


def _chosen(pick: Pick) -> Candidate:
    if pick.chosen is None:
        raise RuntimeError("an admissible decision chooses an instance for each leg")
    return pick.chosen
