"""Each finished prefill leg says whether the index was right about its engine; a miss is held against the
index only when nothing else explains it: docs/adr/0005-when-an-index-is-believed.md.

Pure: told of removals by the index, of legs by the director, and of the time by `look`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from proxy.caches.expected import SETTLE_S
from proxy.caches.removals import Removals
from proxy.caches.shown import AccuracyShown
from proxy.caches.tallies import Cause, Counts, Outcome
from proxy.caches.trust import REBUILD_FIRST_S, Step, Trust

IN_DOUBT_S = 60.0
"""How long misses wait for a source that is in doubt: as long as a replay may take."""


class Source(Protocol):
    """What is asked of a followed event source."""

    @property
    def state(self) -> str:
        """`exact`, `partial` or `unknown`."""
        ...

    @property
    def epoch(self) -> int:
        """How often all blocks were forgotten because another process may be behind the address."""
        ...


Learned = Callable[[], tuple[int, Sequence[int]]]
"""The tokens of a rank's blocks, and the keys of a prompt's full ones."""


class Change(NamedTuple):
    """A step in the trust in one rank."""

    instance: str
    rank: int
    step: Step
    promised: int
    """Blocks the index said were cached in the last miss held against it."""
    reported: int
    """Blocks the engine reported then."""
    rebuild_in_s: float | None
    """How long until the rank's index is built anew; None if it is not to be."""


class _Rank:
    """All that is counted and believed of one rank."""

    def __init__(self, instance: str, rank: int, rebuild_first_s: float) -> None:
        self.instance, self.rank = instance, rank
        self.counts = Counts()
        self.removals = Removals()
        self.pending: deque[_Miss] = deque()
        self.trust = Trust(rebuild_first_s)
        self.reuses_all = (
            False  # it has reported all that was promised, so it does not keep the last block back
        )
        self.last_miss = (0, 0)


class Comparison:
    """One leg on its way, and what the index had said of it. Answered at most once, dropped always."""

    __slots__ = (
        *(
            "_goes_on",
            "_learned",
            "_ticket",
            "_waits",
            "block_size",
            "index",
            "keys",
            "moved",
            "of",
            "predicted",
        ),
        *("reported_tokens", "settle_s"),
    )

    def __init__(
        self,
        of: _Rank,
        index: str,
        predicted: int,
        block_size: int,
        keys: Sequence[int],
        settle_s: float,
        *,
        moved: bool,
        learned: "Learned | None",
        goes_on: bool = False,
    ) -> None:
        self.of = of
        self.index = index
        self.predicted = predicted
        self.block_size = block_size
        self.keys = keys
        self.settle_s = settle_s
        self.moved = moved
        self.reported_tokens = 0
        self._learned = learned
        self._goes_on = goes_on
        self._ticket: int | None = of.removals.begin()
        self._waits = False

    def answered(self, reported_tokens: int | None, now: float, *, tokens_differ: bool = False) -> None:
        """The engine has answered; `reported_tokens` it had cached, None if it does not say.

        `tokens_differ`: it counted the prompt otherwise than we did, or such prompts are not trusted any
        more.
        """
        counts, index = self.of.counts, self.index
        if reported_tokens is None or reported_tokens < 0:
            counts.tallies[index].count(Outcome.UNREPORTED)
            self.end()
            return
        self.reported_tokens = reported_tokens
        error = self.predicted - self.reported
        outcome = Outcome.EXACT if not error else Outcome.OVER if error > 0 else Outcome.UNDER
        counts.compared(index, outcome, abs(error))
        if not error and self.predicted and not tokens_differ:
            self.of.reuses_all = True
            self.of.trust.hit(now, promised_too_much=False)
        if error and tokens_differ:
            counts.missed(index, Cause.TOKENS)
        elif error > 0 or (error and index == "exact"):
            self.of.pending.append(_Miss(self, now + self.settle_s))
            self._waits = True
            return
        self.end()

    @property
    def reported(self) -> int:
        """Blocks the engine found; more than the prompt has, or nonsense, is one block more than it could be.

        Of a prompt that goes on beyond what is known of it, those that are known.
        """
        most = len(self.keys) + (0 if self._goes_on else 1)
        return min(self.reported_tokens // self.block_size, most)

    def learn(self) -> None:
        """Count in the rank's own blocks, which may have been a guess when the leg was sent."""
        if self._learned is not None:
            self.block_size, self.keys = self._learned()

    def drop(self) -> None:
        """No answer will come, if none came."""
        if not self._waits:
            self.end()

    def end(self) -> None:
        """Remember no removals for it any more."""
        if self._ticket is not None:
            self.of.removals.end(self._ticket)
            self._ticket = None

    def was_removed(self, block: int) -> bool:
        """Whether a block of the prompt was removed after the decision; not to be asked of one that has
        ended.
        """
        return self._ticket is not None and self.of.removals.since(self._ticket, self.keys[block])


class _Miss(NamedTuple):
    """A prediction that was off and waits for the events that may explain it."""

    leg: Comparison
    due_at: float


class Accuracy:
    """Predictions against reports, for every rank of every instance."""

    def __init__(
        self,
        holds: Callable[[str, int, int], bool],
        *,
        upper_bound: Callable[[str, int], bool] = lambda _instance, _rank: False,
        settle_s: float = SETTLE_S,
        rebuild_first_s: float = REBUILD_FIRST_S,
    ) -> None:
        """`holds` tells whether a block lies in a rank now, by its key; `upper_bound` whether what the index
        says of a rank is only the most its engine may reuse. `rebuild_first_s`: as `Trust` has it.
        """
        self._holds = holds
        self._upper_bound = upper_bound
        self._settle_s = settle_s
        self._rebuild_first_s = rebuild_first_s
        self._ranks: dict[tuple[str, int], _Rank] = {}

    # -- what happens -------------------------------------------------------------------------------------

    def begin(
        self,
        instance: str,
        rank: int,
        *,
        index: str,
        predicted_tokens: int,
        block_size: int,
        keys: Sequence[int],
        learned: Learned | None = None,
        goes_on: bool = False,
    ) -> Comparison:
        """A leg is sent now. `keys`: of the prompt's full blocks; `index`: what the rank's was worth.

        `goes_on`: the prompt has more blocks, which are not known. `learned` tells block size and keys once
        more before a miss is judged: if it is not known yet, none is stored.
        """
        of = self._ranks.get((instance, rank))
        if of is None:
            of = self._ranks[instance, rank] = _Rank(instance, rank, self._rebuild_first_s)
        predicted = min(predicted_tokens // block_size, len(keys))
        # The decision may be a turn of the event loop old; removals are heard of from here on only.
        moved = predicted > 0 and not self._holds(instance, rank, keys[predicted - 1])
        return Comparison(
            of,
            index,
            predicted,
            block_size,
            keys,
            self._settle_s,
            moved=moved,
            learned=learned,
            goes_on=goes_on,
        )

    def removed(self, instance: str, rank: int, keys: Sequence[int] | None) -> None:
        """As `PrefixIndex.listen` tells: these blocks have left a tier of the rank; None for all of them."""
        of = self._ranks.get((instance, rank))
        if of is not None:
            of.removals.add(keys)

    def look(self, now: float, source: Callable[[str, int], Source | None]) -> list[Change]:
        """Judge what is due; what changed in the trust in ranks, and whose index is to be built anew."""
        changes: list[Change] = []
        for of in self._ranks.values():
            told = source(of.instance, of.rank)
            known = told is not None and str(told.state) != "unknown"
            patience_s = 0.0 if known or told is None else IN_DOUBT_S
            while of.pending and of.pending[0].due_at + patience_s <= now:
                changes += self._change(of, self._judge(of.pending.popleft(), now), now)
            if told is not None:
                step = of.trust.look(now, forgotten=told.epoch, known=known)
                changes += self._change(of, step, now)
        return changes

    def _change(self, of: _Rank, step: Step | None, now: float) -> Iterator[Change]:
        if step is not None:
            yield Change(of.instance, of.rank, step, *of.last_miss, of.trust.rebuild_in_s(now))

    def forget(self, instance: str) -> None:
        """An instance was removed: drop what was counted of it."""
        for at in [at for at in self._ranks if at[0] == instance]:
            del self._ranks[at]

    def _judge(self, miss: _Miss, now: float) -> Step | None:
        leg, of = miss.leg, miss.leg.of
        leg.learn()
        reported = leg.reported
        over = leg.predicted > reported
        cause = self._why_over(leg, reported) if over else self._why_under(leg, reported)
        leg.end()
        of.counts.missed(leg.index, cause)
        if over and cause is Cause.INDEX:
            of.last_miss = (leg.predicted, reported)
            return of.trust.hit(now, promised_too_much=True)
        if not over and leg.predicted:
            return of.trust.hit(now, promised_too_much=False)
        return None

    def _why_over(self, leg: Comparison, reported: int) -> Cause:
        if leg.moved or leg.was_removed(reported):
            return Cause.RACE
        # Speculative decoding (EAGLE, MTP) makes vLLM compute the last block it has found again, each time.
        keeps_last_back = leg.predicted - reported == 1 and not leg.of.reuses_all
        if keeps_last_back or self._upper_bound(leg.of.instance, leg.of.rank):
            return Cause.UPPER_BOUND
        return Cause.INDEX

    def _why_under(self, leg: Comparison, reported: int) -> Cause:
        most = min(reported, len(leg.keys))
        if most <= leg.predicted:
            return Cause.INDEX
        came = all(
            leg.was_removed(block) or self._holds(leg.of.instance, leg.of.rank, leg.keys[block])
            for block in (leg.predicted, most - 1)
        )
        return Cause.RACE if came else Cause.INDEX

    # -- what is asked ------------------------------------------------------------------------------------

    def trusted(self, instance: str, rank: int) -> bool:
        """Whether prompts may be placed by what the index says of a rank."""
        of = self._ranks.get((instance, rank))
        return of is None or of.trust.trusted

    def status(self, instance: str, rank: int) -> AccuracyShown:
        """For `/status`."""
        of = self._ranks.get((instance, rank))
        counts, trusted = (of.counts, of.trust.trusted) if of is not None else (Counts(), True)
        return counts.shown(trusted=trusted)

    def counts(self) -> Iterator[tuple[str, Counts]]:
        """The counts of every rank that has had a leg, with its instance."""
        for of in self._ranks.values():
            yield of.instance, of.counts
