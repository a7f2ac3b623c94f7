"""What an engine had cached at every moment, told by its own events and by nothing of kvproxy's index.

Pure and plain: blocks are known by their whole content, the state of a moment is found by going through all
changes up to then. Slow, and asked only about the few legs that were not predicted right.

An event can say that a block was stored which is cached already: another physical copy, which goes by an
event of its own, or a report of what was hit, which does not. Both readings are kept, for either may be the
engine's truth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored, EngineHash, EventBatch

_ROOT = 0
_Content = tuple[int, tuple[int, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as an engine's prefix cache is asked for it."""

    tokens: Sequence[int]
    adapter: str | None = None
    salt: str | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    at: float
    content: int  # _ROOT: everything was cleared
    stored: bool


class CacheHistory:
    """The changes of one engine's cache. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._contents: dict[_Content, int] = {}
        self._of_hash: dict[EngineHash, int] = {}
        self._changes: list[_Change] = []
        self._next: int | None = None
        self.block_size: int | None = None
        self.lost: list[float] = []
        """When events were missing before the one that came."""
        self.removed = 0
        self.cleared = 0

    @property
    def published(self) -> int:
        """How many batches the process has published."""
        return self._next or 0

    @property
    def cached_blocks(self) -> int:
        """How many different blocks are cached now; a copy that is still there after another went is not
        counted."""
        cached: set[int] = set()
        for change in self._changes:
            if change.content == _ROOT:
                cached.clear()
            elif change.stored:
                cached.add(change.content)
            else:
                cached.discard(change.content)
        return len(cached)

    def add(self, number: int, batch: EventBatch) -> None:
        """The next batch that came."""
        if number != (self._next or 0):
            self.lost.append(batch.ts)
        self._next = number + 1
        for event in batch.events:
            match event:
                case BlockStored():
                    self._store(batch.ts, event)
                case BlockRemoved(block_hashes=hashes):
                    for block in hashes:
                        self.removed += 1
                        if (content := self._of_hash.get(block)) is not None:
                            self._changes.append(_Change(batch.ts, content, stored=False))
                case AllBlocksCleared():
                    self.cleared += 1
                    self._changes.append(_Change(batch.ts, _ROOT, stored=False))

    def new_process(self, at: float) -> None:
        """The engine was killed: nothing of its cache is left, and its numbers begin again."""
        self._changes.append(_Change(at, _ROOT, stored=False))
        self._next = None

    def _store(self, at: float, event: BlockStored) -> None:
        self.block_size = size = event.block_size
        parent: int | None = _ROOT
        if event.parent_block_hash is not None:
            parent = self._of_hash.get(event.parent_block_hash)
        if parent is None:
            self.lost.append(at)
            return
        for n, block in enumerate(event.block_hashes):
            extra = (event.extra_keys[n] if event.extra_keys else None) or []
            if not event.extra_keys and event.lora_name:
                extra = [event.lora_name]
            tokens = tuple(event.token_ids[n * size : (n + 1) * size])
            content = (parent, tokens, tuple(map(str, extra)))
            parent = self._contents.setdefault(content, len(self._contents) + 1)
            self._of_hash[block] = parent
            self._changes.append(_Change(at, parent, stored=True))

    def courses(self, asked: Asked, begin: float, end: float) -> list[list[tuple[float, int]]]:
        """How many of a prompt's tokens could be reused, from when on, between two moments: a course for each
        reading.

        The first entry of a course is what was so at the beginning.
        """
        if self.block_size is None:
            return [[(begin, 0)]]
        chain = list(self._chain(asked, self.block_size))
        usable = (len(asked.tokens) - 1) // self.block_size
        found = []
        for copies in (True, False):
            course = [(begin, 0)]
            for at, blocks in self._states(chain, copies=copies):
                state = max(at, begin), min(blocks, usable) * self.block_size
                if at > end:
                    break
                if at <= begin:
                    course = [state]
                elif state[1] != course[-1][1]:
                    course.append(state)
            found.append(course)
        return found

    def lengths(self, asked: Asked, begin: float, end: float) -> set[int]:
        """All the lengths in the courses."""
        return {length for course in self.courses(asked, begin, end) for _, length in course}

    def told(self, asked: Asked, begin: float, end: float) -> list[str]:
        """What happened to a prompt's blocks between two moments, for people."""
        if self.block_size is None:
            return []
        places = {content: n for n, content in enumerate(self._chain(asked, self.block_size))}
        told: list[tuple[float, str, list[int]]] = []
        for change in self._changes:
            if not begin <= change.at <= end or (change.content != _ROOT and change.content not in places):
                continue
            what = (
                "everything cleared" if change.content == _ROOT else "stored" if change.stored else "removed"
            )
            if not told or told[-1][:2] != (change.at, what):
                told.append((change.at, what, []))
            if change.content != _ROOT:
                told[-1][2].append(places[change.content])
        return [
            f"{end - at:.3f} s before its end: {f'blocks {blocks} ' if blocks else ''}{what}"
            for at, what, blocks in told
        ]

    def _chain(self, asked: Asked, size: int) -> Iterator[int]:
        """The contents of the prompt's full blocks, as far as any of them was ever cached."""
        parent = _ROOT
        for n in range(len(asked.tokens) // size):
            extra = [asked.adapter] if asked.adapter else []
            if n == 0 and asked.salt:
                extra.append(asked.salt)
            tokens = tuple(asked.tokens[n * size : (n + 1) * size])
            known = self._contents.get((parent, tokens, tuple(extra)))
            if known is None:
                return
            yield (parent := known)

    def _states(self, chain: list[int], *, copies: bool) -> Iterator[tuple[float, int]]:
        """Each moment at which something happened to the chain, and its leading cached blocks then."""
        places = {content: n for n, content in enumerate(chain)}
        held = [0] * len(chain)
        for change in self._changes:
            if change.content == _ROOT:
                held = [0] * len(chain)
            elif (place := places.get(change.content)) is None:
                continue
            elif not copies:
                held[place] = int(change.stored)
            else:
                held[place] = max(0, held[place] + (1 if change.stored else -1))
            yield change.at, next((n for n, count in enumerate(held) if not count), len(held))
