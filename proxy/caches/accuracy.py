"""Each finished prefill leg shows whether the index was right about its engine.

A miss counts against the index only when nothing else explains it:
docs/adr/0005-when-an-index-is-believed.md. Pure: the index calls `removed`, the director reports legs, and
`look` brings the time.
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
"""Seconds for which misses wait while their source is in doubt: as long as a replay may take."""


class FollowedSource(Protocol):
    """What is asked of an event source that is followed."""

    @property
    def state(self) -> str:
        """`exact`, `partial` or `unknown`."""
        ...

    @property
    def epoch(self) -> int:
        """How often all blocks of the rank were forgotten because another process may be behind the
        address.
        """
        ...


Learned = Callable[[], tuple[int, Sequence[int]]]
"""Returns the tokens of one of a rank's blocks, and the keys of a prompt's full blocks."""


class Change(NamedTuple):
    """A change of the trust in one rank."""

    instance: str
    rank: int
    step: Step
    promised: int
    """Blocks that the index had promised in the last miss that counted against it."""
    reported: int
    """Blocks that the engine reported for that leg."""
    rebuild_in_s: float | None
    """Seconds until the rank's index is built anew; None if it is not to be."""


class _Rank:
    """The counts of one rank, and the trust in it."""

    def __init__(self, instance: str, rank: int, rebuild_first_s: float) -> None:
        self.instance, self.rank = instance, rank
        self.counts = Counts()
        self.removals = Removals()
        self.pending: deque[_Miss] = deque()
        self.trust = Trust(rebuild_first_s)
        self.reuses_all = (
            False  # it once reported all that was promised, so it does not compute the last block again
        )
        self.last_miss = (0, 0)


class Comparison:
    """A leg that is under way, and what the index promised for it. `answered` is called at most once, `drop`
    always.
    """

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
        """The engine has answered; `reported_tokens`: what it had cached, None if it does not say.

        `tokens_differ`: the engine counted other tokens in the prompt than kvproxy, or prompts of this kind
        are not trusted any more.
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
        """The number of blocks that the engine found; a number that cannot be right is one block more than
        there can be.

        Of a prompt of which only a beginning is known, at most the blocks of that beginning.
        """
        most = len(self.keys) + (0 if self._goes_on else 1)
        return min(self.reported_tokens // self.block_size, most)

    def learn(self) -> None:
        """Go over to the rank's own block size, which may have been a guess when the leg was sent."""
        if self._learned is not None:
            self.block_size, self.keys = self._learned()

    def drop(self) -> None:
        """The leg is over: unless it was answered, no answer will come."""
        if not self._waits:
            self.end()

    def end(self) -> None:
        """Stop remembering removals for this leg."""
        if self._ticket is not None:
            self.of.removals.end(self._ticket)
            self._ticket = None

    def was_removed(self, block: int) -> bool:
        """Whether a block of the prompt was removed after the decision. MUST NOT be called after `end`."""
        return self._ticket is not None and self.of.removals.since(self._ticket, self.keys[block])


class _Miss(NamedTuple):
    """A prediction that was wrong, and waits for the events that may explain it."""

    leg: Comparison
    due_at: float


class Accuracy:
    """Compares predictions with reports, for every rank of every instance."""

    def __init__(
        self,
        holds: Callable[[str, int, int], bool],
        *,
        upper_bound: Callable[[str, int], bool] = lambda _instance, _rank: False,
        settle_s: float = SETTLE_S,
        rebuild_first_s: float = REBUILD_FIRST_S,
    ) -> None:
        """`holds`: whether the block with a key lies in a rank now. `upper_bound`: whether the engine of a
        rank may reuse less than the index says. `settle_s`: seconds after a leg's answer until a miss is
        judged. `rebuild_first_s`: as of `Trust`.
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
        """A leg is sent now. `keys`: of the prompt's full blocks; `index`: the state of the rank's index.

        `goes_on`: the prompt has more blocks, which are not known. `learned` gives block size and keys once
        more before a miss is judged; if the block size is not known by then, no block is cached there.
        """
        of = self._ranks.get((instance, rank))
        if of is None:
            of = self._ranks[instance, rank] = _Rank(instance, rank, self._rebuild_first_s)
        predicted = min(predicted_tokens // block_size, len(keys))
        # The decision may be one turn of the event loop old, and removals are heard of only from now on.
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
        """Listener of `PrefixIndex.listen`: these blocks have left a tier of the rank; None: all of its
        blocks.
        """
        of = self._ranks.get((instance, rank))
        if of is not None:
            of.removals.add(keys)

    def look(self, now: float, source: Callable[[str, int], FollowedSource | None]) -> list[Change]:
        """Judge the misses that are due. Returns each change of the trust in a rank, and each rebuild that is
        due.
        """
        changes: list[Change] = []
        for of in self._ranks.values():
            followed = source(of.instance, of.rank)
            known = followed is not None and str(followed.state) != "unknown"
            patience_s = 0.0 if known or followed is None else IN_DOUBT_S
            while of.pending and of.pending[0].due_at + patience_s <= now:
                changes += self._change(of, self._judge(of.pending.popleft(), now), now)
            if followed is not None:
                step = of.trust.look(now, forgotten=followed.epoch, known=known)
                changes += self._change(of, step, now)
        return changes

    def _change(self, of: _Rank, step: Step | None, now: float) -> Iterator[Change]:
        if step is not None:
            yield Change(of.instance, of.rank, step, *of.last_miss, of.trust.rebuild_in_s(now))

    def forget(self, instance: str) -> None:
        """An instance was removed: drop its counts."""
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
        # With speculative decoding (EAGLE, MTP) vLLM always computes the last block that it has found again.
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
        """The counts of every rank that has had a leg, each with its instance."""
        for of in self._ranks.values():
            yield of.instance, of.counts
