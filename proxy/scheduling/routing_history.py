"""What was sent where is remembered for the latest prompts, within a bound on blocks and on prompts.

For engines that tell nothing of their caches. The oldest prompt is forgotten first, as an engine evicts it,
but not what a later one of the same place has in common with it. What prompts have in common is kept once
(`proxy/key_runs.py`).
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence

from proxy.key_runs import KeyRun

MAX_BLOCKS = 1 << 21
"""The most blocks that are remembered: 16 MiB of keys, 33 million tokens, about what eight engines cache."""

MAX_PROMPTS = 1 << 15
"""The most prompts that are remembered; one that branches off others takes about a kilobyte beside its
keys."""

Place = tuple[str, int]
"""An instance, and its rank."""


class _Run(KeyRun):
    """Blocks that were sent together so far, and where."""

    __slots__ = ("sent",)

    def __init__(self, keys: "array[int]", before: "_Run | None") -> None:
        super().__init__(keys, before)
        self.sent: dict[Place, int] = {}
        """The number of the latest prompt with these blocks, by where it was sent: never lower than in the
        runs that follow."""

    def cut(self, blocks: int) -> "_Run":
        """As `KeyRun`: both parts were sent where the whole was."""
        first = super().cut(blocks)
        first.sent = dict(self.sent)
        return first


class RoutingHistory:
    """The prompts of the latest decisions, by place. `keys`: those of all blocks of a prompt."""

    def __init__(self, max_blocks: int = MAX_BLOCKS, max_prompts: int = MAX_PROMPTS) -> None:
        self._max_blocks = max_blocks
        self._max_prompts = max_prompts
        self._root = _Run(array("Q"), None)
        self._prompts: deque[tuple[int, Place, _Run]] = deque()
        """For each prompt its number, where it was sent, and its last run; the oldest first."""
        self._numbers = 0
        self._lost: dict[str, int] = {}
        """The number of the last prompt before an instance lost its cache."""
        self.blocks = 0
        """How many blocks are remembered."""

    def __len__(self) -> int:
        """How many prompts are remembered."""
        return len(self._prompts)

    def sent(self, place: Place, keys: Sequence[int]) -> None:
        """A prompt is sent to a place."""
        if not len(keys):
            return
        self._numbers += 1
        last = self._root.upto(keys)
        run, new = last, 0
        while (before := run.before) is not None:
            new += 0 if run.sent else len(run.keys)
            run.sent[place] = self._numbers
            run = before
        self.blocks += new
        self._prompts.append((self._numbers, place, last))
        while len(self._prompts) > self._max_prompts or self.blocks > self._max_blocks:
            self._forget_oldest()

    def matches(self, keys: Sequence[int]) -> Mapping[Place, int]:
        """How many leading blocks of a prompt were sent to each place that got any."""
        found: dict[Place, int] = {}
        run, at = self._root, 0
        while at < len(keys) and (then := run.after.get(keys[at])) is not None:
            shared = then.shared(keys, at)
            at += shared
            for place, number in then.sent.items():
                if number > self._lost.get(place[0], 0):
                    found[place] = at
            if shared < len(then.keys):
                break
            run = then
        return found

    def forget(self, instance: str) -> None:
        """Nothing that was sent to an instance so far is there any more."""
        if self._prompts:
            self._lost[instance] = self._numbers

    def _forget_oldest(self) -> None:
        number, place, run = self._prompts.popleft()
        while (before := run.before) is not None and run.sent.get(place) == number:
            del run.sent[place]
            if not run.sent:
                self.blocks -= len(run.keys)
                run.drop()
            run = before
        if self._lost:  # of prompts that are forgotten anyway
            self._lost = {instance: last for instance, last in self._lost.items() if last > number}
