"""What users write with kvevents, for mypy alone: it is never run.

A line that must not pass is ignored with its error's code; `warn_unused_ignores` tells when it begins to
pass.
"""

import asyncio
from array import array
from collections.abc import Generator, Mapping, Sequence
from typing import assert_type

import numpy as np

from kvevents import (
    DEFAULT_TIER,
    KEY_BITS,
    REPORT_SESSION,
    AllBlocksCleared,
    BlockHasher,
    BlockRemoved,
    BlockStored,
    Change,
    Checkpoint,
    Decoded,
    Digests,
    EngineHash,
    Event,
    EventBatch,
    ExportedRank,
    Index,
    Keys,
    Message,
    NullObserver,
    Observer,
    PrefixIndex,
    Prompt,
    Reason,
    Resumed,
    RetireReason,
    Slot,
    State,
    UnreadableMessage,
    decode,
    read_live,
    read_replay,
)
from kvevents import snapshot as snapshots
from kvevents.snapshot import Snapshot, SnapshotError
from kvevents.subscriber import (
    Context,
    Resume,
    SourceAddress,
    Subscriber,
    Turns,
    in_slices,
    open_context,
    sweep_away,
)

# ---- an index ---------------------------------------------------------------------------------------------

hasher = BlockHasher()
keys: Keys = np.zeros(1, np.uint64)
assert_type(Digests(keys, None).numbers(), list[int])
assert_type(KEY_BITS, int)
BlockHasher(b"secret")
index = PrefixIndex(hasher, max_blocks=1000, max_orphans=10, count_copies=True)
stored = BlockStored(block_hashes=[1, b"2"], parent_block_hash=None, token_ids=[1, 2, 3, 4], block_size=2)
assert_type(index.store("engine", 0, stored), Change)
assert_type(index.remove("engine", 0, BlockRemoved([1], medium="CPU")), Change)
assert_type(index.clear("engine", 0), int)
assert_type(index.retire("engine"), int)
assert_type(index.sweep(), bool)
change = index.store("engine", 0, stored)
assert_type(change.dropped, Mapping[Reason, int])

index.store("engine", stored)  # type: ignore[call-arg]  # a rank is never left out
index.remove("engine", 0, stored)  # type: ignore[arg-type]  # another event
PrefixIndex(hasher, False)  # type: ignore[call-arg]  # options have names
stored.block_size = 4  # type: ignore[misc]  # events are values

# ---- questions --------------------------------------------------------------------------------------------

prompt = Prompt([1, 2, 3], lora_name="adapter", cache_salt="salt")
Prompt(array("I", [1, 2, 3]))
Prompt(np.array([1, 2, 3], np.uint32))
assert_type(index.match(prompt), dict[Slot, int])
assert_type(index.match(prompt).get(Slot("engine", 0, DEFAULT_TIER), 0), int)
assert_type(index.match_tier(prompt), dict[tuple[str, int], int])
assert_type(index.match_slower(prompt, ["CPU"]), dict[tuple[str, int], dict[str, int]])
assert_type(index.blocks(), dict[Slot, int])
assert_type(index.block_size("engine", 0), int | None)

index.match([1, 2, 3])  # type: ignore[arg-type]  # tokens alone do not say which blocks may be shared
Prompt("text")  # type: ignore[arg-type]  # text has no blocks
prompt.lora_name = "other"  # type: ignore[misc]  # what was made of it would be wrong

# ---- an observer ------------------------------------------------------------------------------------------


class Counting(NullObserver):
    def retired(self, *, instance: str, rank: int, why: RetireReason) -> None:
        print(instance, rank, why is RetireReason.NEW_PROCESS)

    def state_changed(self, *, instance: str, rank: int, state: State) -> None:
        print(instance, rank, state is State.EXACT)


class Wrong(NullObserver):
    def gap(self, *, instance: str, missing: int) -> None: ...  # type: ignore[override]  # it is told the rank, too


class Nothing: ...


observer: Observer = Counting()
other: Observer = Nothing()  # type: ignore[assignment]  # it hears nothing

# ---- a subscriber -----------------------------------------------------------------------------------------


async def nothing_known() -> Checkpoint | None:
    return None


async def follow() -> None:
    context: Context = open_context()
    address = SourceAddress(0, "tcp://127.0.0.1:5557", "tcp://127.0.0.1:5657", topic="kv", bind=False)
    resume: Resume = nothing_known
    subscriber = Subscriber("engine", address, index, observer, context=context, turns=Turns(), resume=resume)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(subscriber.run())
    assert_type(subscriber.state, State)
    assert_type(subscriber.epoch, int)
    assert_type(subscriber.resumed, Resumed)
    assert_type(subscriber.stale_because, RetireReason | None)
    assert_type(subscriber.checkpoint, Checkpoint | None)
    subscriber.suspect()
    subscriber.rebuild(replay=True)
    assert_type(await subscriber.at_rest(copy), Snapshot | None)
    await sweep_away(index.sweep)
    context.term()

    Subscriber("engine", "tcp://127.0.0.1:5557", index)  # type: ignore[arg-type]  # which rank is it?
    Subscriber("engine", address, index, context)  # type: ignore[arg-type]  # no observer
    subscriber.rebuild()  # type: ignore[call-arg]  # from what?
    subscriber.state = State.EXACT  # type: ignore[misc]  # it is found out, not set


class Forwarding:
    """Something that looks like an index."""

    def store(self, instance: str, rank: int, event: BlockStored) -> Change:
        return index.store(instance, rank, event)

    def remove(self, instance: str, rank: int, event: BlockRemoved) -> Change:
        return index.remove(instance, rank, event)

    def clear(self, instance: str, rank: int) -> int:
        return index.clear(instance, rank)

    def retire(self, instance: str, rank: int | None = None) -> int:
        return index.retire(instance, rank)

    def sweep(self) -> bool:
        return index.sweep()


forwarding: Index = Forwarding()
not_one: Index = observer  # type: ignore[assignment]  # nothing can be stored in it

# ---- from one process to the next -------------------------------------------------------------------------


def copy(checkpoint: Checkpoint) -> Generator[None, None, Snapshot | None]:
    blocks: ExportedRank | None = yield from index.exporting("engine", 0)
    return None if blocks is None else Snapshot("engine", 0, checkpoint, blocks)


async def restore(data: bytes) -> Checkpoint | None:
    made_with = snapshots.fingerprint(index.hasher)
    try:
        snapshot = snapshots.decode(data, made_with)
    except SnapshotError:
        return None
    assert_type(await in_slices(index.loading("engine", 0, snapshot.blocks)), bool)
    assert_type(snapshots.encode(snapshot, made_with), bytes)
    snapshots.decode(data)  # type: ignore[call-arg]  # keys of which secret?
    return snapshot.checkpoint


# ---- messages of another transport ------------------------------------------------------------------------


def read(frames: Sequence[bytes]) -> None:
    try:
        assert_type(read_live(frames), Message)
        message = read_replay(frames)
        read_replay(frames).payload  # type: ignore[union-attr]  # noqa: B018  # None is the end of a replay
    except UnreadableMessage:
        return
    if message is not None:
        told: Decoded = decode(message.payload)
        batch: EventBatch = told.batch
        apply(batch.events)


def apply(events: Sequence[Event]) -> None:
    for event in events:
        match event:
            case BlockStored(session_id=session):
                hashes: list[EngineHash] = event.block_hashes
                print(hashes, session == REPORT_SESSION)
            case BlockRemoved():
                index.remove("engine", 0, event)
            case AllBlocksCleared():
                index.clear("engine", 0)
