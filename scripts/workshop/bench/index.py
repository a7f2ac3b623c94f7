"""Measures what the prefix index costs: CPU time and memory of this process, with events as an engine writes
them.

Medians of several rounds, because other work on the machine shares its caches; pauses are the longest seen.
"""

import gc
import random
import resource
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path

import msgspec
import numpy as np

from kvevents import BlockRemoved, BlockStored, Message, NullObserver, PrefixIndex, Prompt
from kvevents.applier import Applier
from proxy.config import parse_instance
from proxy.fleet import Fleet, Instance, ModelCard
from proxy.phases import Role
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import CacheAffinity
from proxy.scheduling.question import Question
from proxy.scheduling.types import View

BLOCK = 16
VOCABULARY = 150_000
ROUNDS = 7

_hashes = random.Random(1)  # noqa: S311  # an engine's block hashes, not ours
_tokens = np.random.default_rng(1)
_numbers = count()


def tokens(amount: int) -> "array[int]":
    """A prompt nobody has had, as the tokenizing side hands it on."""
    return array("I", _tokens.integers(0, VOCABULARY, amount, dtype=np.uint32).tobytes())


def hashes(amount: int) -> list[int]:
    """Engine hashes."""
    return [_hashes.getrandbits(64) for _ in range(amount)]


def stored(prompt: "array[int]", names: Sequence[int], parent: int | None = None) -> BlockStored:
    """The event of a run that holds all of `prompt`."""
    return BlockStored(list(names), parent, prompt.tolist(), BLOCK, medium="GPU", group_idx=0)


def wire(events: Iterable[BlockStored | BlockRemoved]) -> Message:
    """A batch as it arrives."""
    return Message(b"", next(_numbers), msgspec.msgpack.encode([time.time(), list(events), 0]))


def cpu_of(work: Callable[[], object]) -> float:
    """Seconds of CPU time."""
    before = time.process_time()
    work()
    return time.process_time() - before


def median_us(prepare: Callable[[], Callable[[], object]], rounds: int = ROUNDS) -> float:
    """Microseconds of CPU time of what `prepare` returns; its own are not counted."""
    return statistics.median(cpu_of(prepare()) for _ in range(rounds)) * 1e6


def rss_mb() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def apply(index: PrefixIndex, instance: str, messages: list[Message]) -> None:
    """As a subscriber does."""
    applier = Applier(instance, 0, index, NullObserver())
    for message in messages:
        for _ in applier.apply(message):
            pass


def say(what: str, figure: str, reach: str = "") -> None:
    """One line of the table."""
    print(f"| {what} | {figure} | {reach} |", flush=True)


def fill(index: PrefixIndex, sources: int, blocks: int) -> float:
    """Give every source its own blocks in chats of 100, all with one system prompt. Returns the longest
    pause, ms.
    """
    longest = 0.0
    system = tokens(BLOCK * 4)
    for source in range(sources):
        instance = f"10.0.{source}.1:8000"
        head = hashes(4)
        index.store(instance, 0, stored(system, head))
        for _ in range(blocks // 100):
            event = stored(tokens(96 * BLOCK), hashes(96), head[-1])
            longest = max(longest, cpu_of(lambda e=event, i=instance: index.store(i, 0, e)))  # type: ignore[misc]
    return longest * 1e3


def ingest(index: PrefixIndex) -> None:
    """CPU per stored block from wire bytes."""
    for what, run in (("prompts of 8k tokens", 512), ("chat turns of 32 blocks", 32)):
        runs = 4096 // run

        def prepare(run: int = run, runs: int = runs) -> Callable[[], object]:
            batch = [wire([stored(tokens(run * BLOCK), hashes(run))]) for _ in range(runs)]
            return lambda: apply(index, "10.0.0.1:8000", batch)

        say(f"ingest, {what}, per block", f"{median_us(prepare) / (run * runs):.2f} us", "2 us")

    def decoding() -> Callable[[], object]:
        batches = []
        parents = hashes(64)
        for parent in parents:
            index.store("10.0.0.1:8000", 0, stored(tokens(BLOCK), [parent]))
        for _ in range(16):
            names = hashes(64)
            batches.append(wire(stored(tokens(BLOCK), [n], p) for n, p in zip(names, parents, strict=True)))
            parents = names
        return lambda: apply(index, "10.0.0.1:8000", batches)

    say("ingest, 64 sequences decoding, per block", f"{median_us(decoding) / 1024:.2f} us")

    def removing() -> Callable[[], object]:
        names = hashes(2048)
        index.store("10.0.0.1:8000", 0, stored(tokens(2048 * BLOCK), names))
        batch = [wire([BlockRemoved([name], "GPU", 0) for name in reversed(names)])]
        return lambda: apply(index, "10.0.0.1:8000", batch)

    say("removal, one block an event, per block", f"{median_us(removing) / 2048:.2f} us")


def long_events() -> None:
    """Events of 32k tokens while the index grows: each is applied in parts, and others run in between."""
    applier = Applier("10.0.2.1:8000", 0, PrefixIndex(), NullObserver())
    whole, parts = [], []
    for _ in range(600):
        steps = applier.apply(wire([stored(tokens(32_768), hashes(2048))]))
        took, ended = [], False
        while not ended:
            before = time.process_time()
            ended = next(steps, "ended") is not None
            took.append(time.process_time() - before)
        whole.append(sum(took))
        parts += took
    middle = statistics.median(whole) * 1e3
    say("one event of 32k tokens, growing to 1.2 M entries, median", f"{middle:.1f} ms")
    say("its longest pause", f"{max(parts) * 1e3:.1f} ms", "5 ms")


def queries() -> None:
    """A prompt that every instance has, by length and number of instances."""
    for instances in (8, 64, 256):
        index = PrefixIndex()
        prompts = {length: tokens(length) for length in (8192, 131_072)}
        for prompt in prompts.values():
            names = hashes(len(prompt) // BLOCK)
            for number in range(instances):
                # Each has a little less than the one before it.
                kept = len(names) - number
                index.store(f"10.1.{number}.1:8000", 0, stored(prompt[: kept * BLOCK], names[:kept]))
        for length, reach in ((8192, "150 us"), (131_072, "1000 us")):
            prompt = prompts[length]

            def prepare(prompt: "array[int]" = prompt, index: PrefixIndex = index) -> Callable[[], object]:
                asked = Prompt(prompt)
                return lambda: index.match(asked)

            say(
                f"query, {length} tokens, {instances} instances",
                f"{median_us(prepare, 21):.0f} us",
                reach,
            )


def forgetting(index: PrefixIndex) -> None:
    """Clear, retire, sweep."""
    slices: list[float] = []

    def swept() -> None:
        more = True
        while more:
            before = time.process_time()
            more = index.sweep()
            slices.append(time.process_time() - before)

    clear = cpu_of(lambda: index.clear("10.0.0.1:8000", 0)) * 1e6
    swept()
    retire = cpu_of(lambda: index.retire("10.0.1.1:8000")) * 1e6
    swept()
    say("clear an instance", f"{clear:.0f} us", "microseconds")
    say("retire an instance", f"{retire:.0f} us", "microseconds")
    middle = statistics.median(slices) * 1e3
    say("slice of a sweep, median and longest", f"{middle:.2f} ms, {max(slices) * 1e3:.2f} ms", "0.5 ms")


class _Exact:
    state = "exact"
    epoch = 0


class _Pairs:
    """`CacheAffinity` as a policy that prices pairs."""

    unit = "tokens"

    def prices(self, view: View) -> list[float]:
        return [(p.uncached_tokens or 0) + p.load_tokens + (d.uncached_tokens or 0) for p, d in view.pairs]


def decisions() -> None:
    """`Placement.decide` on 8 prefill and 8 decode instances that all have 3/4 of the prompt."""
    index, fleet = PrefixIndex(), Fleet()
    prompt = tokens(8192)
    names = hashes(384)
    for number in range(16):
        instance = Instance(
            parse_instance(f"10.2.{number}.1:8000", Role.PREFILL if number < 8 else Role.DECODE)
        )
        instance.came_up()
        instance.listed([ModelCard("tiny")], 0.0)
        instance.is_followed({0: _Exact()})
        fleet.add(instance)
        index.store(instance.address, 0, stored(prompt[: 384 * BLOCK], names))
    placement, joint = (
        Placement(fleet, index, policy, "policy", clock=time.monotonic)
        for policy in (CacheAffinity(), _Pairs())
    )

    def prepare(by: Placement = placement) -> Callable[[], object]:
        question = Question("tiny", Prompt(prompt), 8192)
        return lambda: by.decide(question)

    say("decision, 8192 tokens, 8 prefill + 8 decode", f"{median_us(prepare, 51):.0f} us", "1000 us")

    say("the same with a policy that prices the 64 pairs", f"{median_us(lambda: prepare(joint), 51):.0f} us")

    def whole() -> Callable[[], object]:
        question = Question("tiny", Prompt(prompt), 8192)

        def decide_and_predict() -> None:
            chosen = placement.decide(question).prefill.chosen
            if chosen is not None:
                placement.expect(chosen, question).settle(came=True)

        return decide_and_predict

    say("the same with predicting its blocks", f"{median_us(whole, 51):.0f} us")


def run(*, quick: bool) -> None:
    """Print the table; `quick`: of a tenth of the cache."""
    sources, blocks = (20, 25_000) if quick else (100, 50_000)
    print("| what | CPU | reach |")
    print("| --- | --- | --- |")
    gc.freeze()  # as kvproxy does
    index = PrefixIndex()
    before = rss_mb()
    pause = fill(index, sources, blocks)
    entries = sum(index.blocks().values())
    grown = rss_mb() - before
    say(
        f"memory of {sources} x {blocks} blocks",
        f"{grown:.0f} MB, {grown * 1e6 / entries:.0f} bytes an entry",
        "220 bytes",
    )
    say(f"longest pause while filling {entries / 1e6:.1f} M entries", f"{pause:.1f} ms", "5 ms")
    ingest(index)
    long_events()
    forgetting(index)
    queries()
    decisions()
    say("memory at the end", f"{rss_mb():.0f} MB")
