"""All that an attempt has taken is given back exactly once, wherever it fails or is cancelled.

`Gate.admit` returns with the claims of an attempt held, so no moment lies between the decision and its
claims. A `Placed` owns them from then on. They end in two groups, because a prefill leg may outlive its
client until its answer names the blocks: what belongs to the leg that computes the prompt ends with that
leg, the rest ends with the attempt or with the reply that it became.

    what                taken by                    ends, whichever comes first, once
    ------------------  --------------------------  ---------------------------------------------------------
    claim for decode    the gate                    the attempt fails or is cancelled; its answer was read;
                                                    a reply that streams is closed
                        `moves_to`                  the same; the claim it replaces ends then
    claim for prefill   the gate, of two legs       the prefill leg is answered, or fails
    prefill work        in the claim of the leg     the prefill leg is answered, or fails; of one leg that
                        that computes the prompt    does both: its stream begins, its answer was read, it
                                                    fails or is cancelled
    expected blocks     the gate                    the leg that computes them is answered, its stream
                                                    begins, or it fails
    comparison          `compares`                  `serving/learning.py` settles it; that leg is over
    hold                the prefill leg's answer    see `serving/custody.py`

    where it fails, or      claim for decode    claim for prefill,        hold
    its client leaves                           blocks, comparison
    ----------------------  ------------------  ------------------------  -----------------------------------
    at the gate             none, or the gate   none, or the gate         none
    an instance was         at once             at once                   none
    removed since
    prefill leg fails       at once             with the leg              failed, unknown or stranded
    prefill leg, client     at once             with the leg, which gets  given up: released if the answer
    leaves                                      a few seconds more        still comes
    decode leg does not     moves, or at once   ended before              unspent: offered again, or released
    connect
    decode leg fails, or    at once             ended before              released or stranded
    its client leaves
    reply streams           with the reply      ended before              pulled

Of two legs that run at once, one that fails ends the other, and a client that leaves ends both.
`serving/custody_at_once.py` says what becomes of their blocks.

Nothing here awaits.
"""

from collections.abc import Collection

from proxy.admission import Admitted
from proxy.caches.accuracy import Comparison
from proxy.connectors.plans import AtOnce, InTurn, Plan
from proxy.fleet import Claim
from proxy.phases import Phase
from proxy.scheduling.decision import Decision, Pick
from proxy.scheduling.placement import Placement
from proxy.scheduling.types import Candidate
from proxy.serving.custody import Hold
from proxy.serving.custody_at_once import Crossing
from proxy.serving.ends import Ends


class Placed:
    """One attempt at a request: where it goes, and all that is claimed for it until it is over."""

    def __init__(
        self,
        admitted: Admitted,
        placement: Placement,
        plan: Plan,
        *,
        kind: str,
        lease_s: float,
        avoid: Collection[str] = (),
    ) -> None:
        """Take over the claims and expected blocks of `admitted`.

        `kind`: how its prompt was tokenized; `lease_s`: how long, in seconds, the engine keeps the blocks
        that a prefill leg leaves; `avoid`: the instances that earlier attempts failed on.
        """
        self.decode_leg = Ends()
        """What ends with the decode leg (or with the only leg of a request that is not split): its claim, and
        its answer. A reply that streams takes it over."""
        self.prefill_leg = Ends()
        """What ends with the prefill leg: its claim, and its answer."""
        self.claims: tuple[Claim, ...] = (admitted.decode,)
        """The claims that the gate made, the decode leg's first."""
        self._decode_claim = admitted.decode
        self.decode_leg.add(admitted.decode.end)
        if admitted.prefill is not None:
            self.claims = (admitted.decode, admitted.prefill)
            self.prefill_leg.add(admitted.prefill.end)
        self._expected = admitted.expected
        self._placement = placement
        self._runs_apart = False
        self.question = admitted.question
        self.decision = admitted.decision
        self.kind = kind
        self.avoid = avoid
        self.prefill = chosen_of(self.decision.prefill)
        """Where the prompt is computed."""
        self.decode = chosen_of(self.decision.decode)
        """Where the answer is generated."""
        self.tried: list[str] = []
        """The decode instances that the hold was offered to."""
        self.comparison: Comparison | None = None
        """What the index predicted of the prompt, to be compared with what its engine reports; None if the
        leg is not compared."""
        self.plan = plan
        """In which order the legs go."""
        self._custody = None if admitted.prefill is None else _custody(plan, self.prefill.instance, lease_s)

    @property
    def one_leg(self) -> bool:
        """Whether one instance serves the whole request."""
        return self._custody is None

    @property
    def custody(self) -> Hold | Crossing:
        """The blocks that the prefill leg computes. Raises RuntimeError if there is no such leg."""
        if self._custody is None:
            raise RuntimeError("where one instance serves a request nothing is handed over")
        return self._custody

    @property
    def hold(self) -> Hold:
        """The `custody` of legs that go in turn. Raises TypeError for others."""
        if not isinstance(self.custody, Hold):
            raise TypeError("only legs that go one after the other have a hold")
        return self.custody

    @property
    def crossing(self) -> Crossing:
        """The `custody` of legs that run at once. Raises TypeError for others."""
        if not isinstance(self.custody, Crossing):
            raise TypeError("only legs that run at once have a crossing")
        return self.custody

    # -- the leg that computes the prompt -----------------------------------------------------------------

    def compares(self) -> None:
        """Record what the index predicts, as the leg is sent: it is compared with the engine's report."""
        self.comparison = self._placement.compare(self.prefill, self.question)

    def runs_apart(self) -> None:
        """The prefill leg is a task of its own, which may outlive the attempt. Whoever starts it MUST call
        `prefill_over` at its end, however it ends.
        """
        self._runs_apart = True

    def computed(self, *, came: bool) -> None:
        """The leg that computes the prompt was answered, has begun to answer, or has failed: it is no work of
        prefill any more, and its blocks are settled. The claim of a leg that only computes ends.

        `came`: the prompt was computed; from then on an answer grows whose first token nobody will see. A
        second call does nothing.
        """
        self.prefill_leg.close()
        if self._custody is None or (came and not self.question.streams):
            self._decode_claim.computed()
        self._expected.settle(came=came)

    def generates(self) -> None:
        """The stream of the leg that generates the answer has begun: from now on its context grows."""
        self._decode_claim.computed()

    def prefill_over(self) -> None:
        """The prefill leg has ended: end what is still its own, and drop a comparison that was not settled.

        A second call does nothing.
        """
        self._runs_apart = False
        self.computed(came=False)
        if self.comparison is not None:
            self.comparison.drop()

    # -- the leg that generates the answer ----------------------------------------------------------------

    def moves_to(self, decision: Decision) -> None:
        """Move the decode leg, before it is sent, to where this decision says: its old claim ends, a new one
        begins.
        """
        self.decode_leg.close()
        self.decision, self.decode = decision, chosen_of(decision.decode)
        self._decode_claim = claim = self._placement.claim(self.decode, Phase.DECODE, self.question)
        self.decode_leg.add(claim.end)
        if not self.question.streams:
            claim.computed()

    # -- the end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The attempt is over: end all of it but what a reply has taken over and what belongs to a prefill
        leg that still runs. A second call does nothing.
        """
        self.decode_leg.close()
        if not self._runs_apart:
            self.prefill_over()


def _custody(plan: Plan, instance: str, lease_s: float) -> Hold | Crossing:
    """The custody of a plan's blocks: a `Crossing` for legs that run at once, else a `Hold`."""
    if isinstance(plan, AtOnce):
        return Crossing(instance)
    return Hold(instance, lease_s=lease_s if isinstance(plan, InTurn) and plan.leased else None)


def chosen_of(pick: Pick) -> Candidate:
    """Where a leg goes by an admissible decision."""
    if pick.chosen is None:
        raise RuntimeError("an admissible decision chooses an instance for each leg")
    return pick.chosen
