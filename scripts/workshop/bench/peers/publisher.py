"""Engines' event publishers in one process: what is in a file is replayed, and more is told live if asked.

    python -m scripts.workshop.bench.peers.publisher [--burst-tokens N --every-s S] FILE EVENTS:REPLAY ...

FILE holds the prompts that every engine has, a JSON list of lists of token ids. A burst is one event of so
many tokens that nobody has seen, from the engines in turns; the first comes when somebody asked for a
replay.
"""

import argparse
import itertools
import json
import pathlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import zmq

from scripts.workshop.bench.peers.bodies import BLOCK

MOST = 32
"""Blocks that an event of the replay tells at most."""
_END = (-1).to_bytes(8, "big", signed=True)
_IDS = range(100_000, 150_000)  # others than those of prompts


class Run(NamedTuple):
    """Blocks that follow each other."""

    tokens: Sequence[int]
    hashes: Sequence[int]
    parent: int | None
    """The hash of the block before them."""


def runs(prompts: Sequence[Sequence[int]]) -> Iterator[Run]:
    """What engines that computed these prompts stored: no block twice."""
    names: dict[tuple[int | None, tuple[int, ...]], int] = {}
    for prompt in prompts:
        parent: int | None = None
        tokens: list[int] = []
        hashes: list[int] = []
        for start in range(0, len(prompt), BLOCK):
            block = tuple(prompt[start : start + BLOCK])
            before = hashes[-1] if hashes else parent
            if (before, block) in names:
                parent = names[before, block]
                continue
            hashes.append(names.setdefault((before, block), len(names) + 1))
            tokens += block
            if len(hashes) == MOST:
                yield Run(tokens, hashes, parent)
                parent, tokens, hashes = hashes[-1], [], []
        if hashes:
            yield Run(tokens, hashes, parent)


def batch(run: Run) -> bytes:
    """One event, as vLLM encodes it."""
    event = {
        "type": "BlockStored",
        "block_hashes": run.hashes,
        "parent_block_hash": run.parent,
        "token_ids": run.tokens,
        "block_size": BLOCK,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    return msgspec.msgpack.encode([time.time(), [event], 0])


def bursts(tokens: int) -> Iterator[bytes]:
    """Events of new prompts of so many tokens each."""
    rng = random.Random(2)  # noqa: S311  # prompts
    names = itertools.count(1 << 40)
    while True:
        hashes = list(itertools.islice(names, tokens // BLOCK))
        yield batch(Run(rng.choices(_IDS, k=tokens), hashes, None))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("engines", nargs="+", help="EVENTS:REPLAY")
    parser.add_argument("--burst-tokens", type=int, default=0)
    parser.add_argument("--every-s", type=float, default=1.0)
    args = parser.parse_args()
    told = [batch(run) for run in runs(json.loads(args.file.read_text("utf-8")))]
    live = bursts(args.burst_tokens) if args.burst_tokens else iter(())
    with zmq.Context() as context:
        _publish(context, args.engines, told, live, args.every_s)


def _publish(
    context: "zmq.Context[zmq.Socket[bytes]]",
    engines: Sequence[str],
    told: Sequence[bytes],
    live: Iterator[bytes],
    every_s: float,
) -> None:
    poller = zmq.Poller()
    pubs = []
    for engine in engines:
        events, replay = engine.split(":")
        pub, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        router.sndhwm = 0
        pub.bind(f"tcp://127.0.0.1:{events}")
        router.bind(f"tcp://127.0.0.1:{replay}")
        poller.register(router, zmq.POLLIN)
        pubs.append(pub)
    turns = itertools.cycle(pubs)
    numbers = {pub: itertools.count(len(told)) for pub in pubs}
    due = None
    while True:
        wait_s = None if due is None else max(0.0, due - time.monotonic())
        for router, _ in poller.poll(None if wait_s is None else 1000 * wait_s):
            client, *_, start = router.recv_multipart()
            for number in range(int.from_bytes(start, "big"), len(told)):
                router.send_multipart((client, b"", b"", number.to_bytes(8, "big"), told[number]))
            router.send_multipart((client, b"", b"", _END, b""))
            due = time.monotonic() + every_s if due is None else due
        if due is not None and time.monotonic() >= due:
            due += every_s
            payload = next(live, None)
            if payload is None:
                due = None
                continue
            pub = next(turns)
            pub.send_multipart((b"", next(numbers[pub]).to_bytes(8, "big"), payload))


if __name__ == "__main__":
    main()
