"""A partial index heals: a bounded share of prefill legs asks the engine to report again what it reuses.

A router that joined late, or that missed more events than an engine's replay buffer holds, does not know
blocks that were cached before, and engines announce a block only when they store it. A leg with
`kv_cache_report_mode` "full" makes vLLM announce once more the blocks it reuses (`PrefixIndex.expect_reports`
says how these are counted). A leg asks for such a report

* if the engine reported more cached tokens than predicted for an earlier prompt with the same beginning, or
* if the prompt has blocks the index does not know, while more than `RESERVE` of the rank's budget is left.

A leg that serves a whole request (on an instance given with `--both`, or by `--bypass`) asks by the second
rule alone: its answer goes to the client and is not compared here. Each report takes one from the rank's
budget, which begins at `BURST` and gains `SHARE` with every leg. Nothing says when all blocks are known, so a
rank stays partial until its engine's cache is reset or its process ends.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Annotated, NamedTuple

from kvevents import PrefixIndex, Prompt, Slot
from proxy.config import MAIN_TIER
from proxy.connectors import Handoff, asking_for_report
from proxy.fleet import Fleet, Instance
from proxy.happenings import BlocksLearnt, ReportAsked, Tell
from proxy.headers import SESSION_ID
from proxy.request.body import Body
from proxy.scheduling.question import Question
from proxy.scheduling.types import Candidate
from proxy.scheduling.view import USUAL_BLOCK_SIZE
from proxy.serving.exchange import Call
from proxy.shown import Count, Shown, says

log = logging.getLogger(__name__)

SHARE = 0.1
"""The share of a rank's prefill legs that may ask for a report in the long run: each report costs the engine
one more event."""
BURST = 64.0
"""How many legs may ask in a row: the system prompts and running conversations of a fleet are then known
within minutes."""
RESERVE = 16.0
"""The part of the budget that is kept for prompts whose beginning is a suspect: the engine has blocks of it
that the index does not know."""
MAX_SUSPECTS = 4096
"""Beginnings of prompts remembered for each rank."""
CONFIRM_S = 1.0
"""How long after a leg's answer its report is judged. Its events are published before the answer, so by then
the index has them or never will."""
MAX_UNCONFIRMED = 64
"""Reports of each rank that wait to be judged; the oldest are forgotten."""
USELESS_AFTER = 8
"""After this many reports in a row that taught nothing, though the engine had reused blocks the index did not
know, the engine is taken to make no reports: releases of vLLM before June 2026 ignore the question."""
USELESS_SHARE = SHARE / 16
"""The share of legs that still ask such an engine."""


class HealingShown(Shown, frozen=True, kw_only=True):
    """What was done to learn of blocks cached before kvproxy listened, since the rank's events were last
    forgotten.
    """

    legs: Annotated[Count, says("Prefill legs that asked for a full report.")]
    blocks_learnt: Annotated[Count, says("Blocks the index knows from them.")]
    suspected_prefixes: Annotated[
        Count, says("Beginnings of prompts of which the engine has blocks that are not known.")
    ]
    refused: Annotated[bool, says("The engine refuses to be asked.")]


class _Unconfirmed(NamedTuple):
    due_at: float
    prompt: Prompt
    predicted: int
    reported: int
    block_size: int


class _Rank:
    def __init__(self, instance: Instance, epoch: int) -> None:
        self.instance = instance
        self.epoch = epoch
        self.budget = BURST
        self.suspects: OrderedDict[int, None] = OrderedDict()
        self.unconfirmed: deque[_Unconfirmed] = deque(maxlen=MAX_UNCONFIRMED)
        self.legs = 0
        self.blocks_learnt = 0
        self.useless = 0
        self.refused = False


class Healing:
    """Decides which prefill legs ask for a report, and learns from the answers of all."""

    def __init__(self, fleet: Fleet, index: PrefixIndex, tell: Tell, clock: Callable[[], float]) -> None:
        """`clock`: any monotonic seconds."""
        self._fleet = fleet
        self._index = index
        self._tell = tell
        self._clock = clock
        self._ranks: dict[tuple[str, int], _Rank] = {}

    def asking(self, call: Call, chosen: Candidate, question: Question) -> Body | None:
        """The request with the question for a full report; None if this leg is not to ask. A retry never
        asks.
        """
        if self._rank(chosen) is None or call.trace.failed:
            return None
        if any(name.lower() == SESSION_ID.lower() for name, _ in call.headers):
            return None
        asking = asking_for_report(call.request.body)
        return asking if asking is not None and self.wants_report(chosen, question) else None

    def wants_report(self, chosen: Candidate, question: Question) -> bool:
        """Whether the prefill leg that is about to be sent should ask for a full report; if so, the report is
        taken from the rank's budget.
        """
        rank = self._rank(chosen)
        if rank is None or rank.refused:
            return False
        share = USELESS_SHARE if rank.useless >= USELESS_AFTER else SHARE
        rank.budget = min(BURST, rank.budget + share)
        unknown = self._first_unknown(chosen, question)
        if unknown is None or rank.budget < 1:
            return False
        if unknown not in rank.suspects and rank.budget < RESERVE:
            return False
        rank.suspects.pop(unknown, None)
        rank.budget -= 1
        rank.legs += 1
        self._index.expect_reports(chosen.instance, chosen.rank)
        self._tell(ReportAsked(chosen.instance, chosen.rank))
        return True

    def answered(self, chosen: Candidate, question: Question, handoff: Handoff, *, asked: bool) -> None:
        """A prefill leg was answered; `asked`: it asked for a report."""
        rank, reported = self._rank(chosen), handoff.cached_tokens
        self._confirm(chosen.instance, chosen.rank)
        if rank is None or reported is None:
            return
        predicted = (chosen.cached_tokens or 0) + chosen.reload_tokens
        unknown = self._first_unknown(chosen, question)
        if unknown is None or question.prompt is None:
            return
        if handoff.prompt_tokens != question.prompt_tokens or reported <= predicted:
            return
        if asked:
            due_at, size = self._clock() + CONFIRM_S, self._block_size(chosen)
            rank.unconfirmed.append(_Unconfirmed(due_at, question.prompt, predicted, reported, size))
        else:
            rank.suspects[unknown] = None
            rank.suspects.move_to_end(unknown)
            if len(rank.suspects) > MAX_SUSPECTS:
                rank.suspects.popitem(last=False)

    def refused(self, chosen: Candidate) -> None:
        """The engine refused a leg that asked for a report, and served the same leg without the question."""
        rank = self._rank(chosen)
        if rank is not None and not rank.refused:
            rank.refused = True
            log.warning(
                "%s rank %d refuses to report its cache: blocks it had before kvproxy listened stay unknown",
                chosen.instance,
                chosen.rank,
            )

    def status(self, instance: str, rank: int) -> HealingShown | None:
        """How a rank's healing goes; None if it never needed any."""
        self._confirm(instance, rank)
        state = self._ranks.get((instance, rank))
        if state is None or state.instance is not self._fleet.get(instance):
            return None
        return HealingShown(
            legs=state.legs,
            blocks_learnt=state.blocks_learnt,
            suspected_prefixes=len(state.suspects),
            refused=state.refused,
        )

    def _rank(self, chosen: Candidate) -> _Rank | None:
        """The state of a partial rank, begun anew when its index is; None if it is not partial, or gone."""
        if chosen.index != "partial":
            return None
        instance = self._fleet.get(chosen.instance)
        source = instance.sources.get(chosen.rank) if instance is not None else None
        if instance is None or source is None or source.state != "partial":
            return None
        at = (chosen.instance, chosen.rank)
        rank = self._ranks.get(at)
        if rank is None or rank.instance is not instance or rank.epoch != source.epoch:
            for gone in [
                at for at, kept in self._ranks.items() if self._fleet.get(at[0]) is not kept.instance
            ]:
                del self._ranks[gone]
            rank = self._ranks[at] = _Rank(instance, source.epoch)
        return rank

    def _block_size(self, chosen: Candidate) -> int:
        return self._index.block_size(chosen.instance, chosen.rank) or USUAL_BLOCK_SIZE

    def _first_unknown(self, chosen: Candidate, question: Question) -> int | None:
        """The key of the prompt's first block that the index does not know there; None if it knows all that
        could be reused.
        """
        size, prompt = self._block_size(chosen), question.prompt
        if prompt is None or chosen.cached_tokens is None:
            return None
        known, whole = chosen.cached_tokens // size, (len(prompt.token_ids) - 1) // size
        keys = self._index.keys(prompt, chosen.instance, chosen.rank, USUAL_BLOCK_SIZE)
        return keys[known] if known < min(whole, len(keys)) else None

    def _confirm(self, instance: str, rank: int) -> None:
        """Judge by the index what the reports that are due have taught."""
        state = self._ranks.get((instance, rank))
        while state is not None and state.unconfirmed and state.unconfirmed[0].due_at <= self._clock():
            report = state.unconfirmed.popleft()
            cached = self._index.match(report.prompt).get(Slot(instance, rank, MAIN_TIER), 0)
            learnt = (min(cached, report.reported) - report.predicted) // report.block_size
            if learnt > 0:
                state.useless = 0
                state.blocks_learnt += learnt
                self._tell(BlocksLearnt(instance, rank, learnt))
            else:
                state.useless += 1
