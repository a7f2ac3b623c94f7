"""Many event publishers in one process, each with a full cache: most of it is replayed, the rest told live.

    python -m scripts.workshop.bench.many_publishers --blocks N --replayed SHARE --live-per-s N \
        EVENTS:REPLAY ...

A batch is what one step of an engine that prefills chat turns publishes: one run of 32 new blocks behind
another, in chats of 96 blocks. Payloads are made when they are needed, so that this process stays small.
"""

import argparse
import itertools
import time

import msgspec
import numpy as np
import zmq

BLOCK = 16
RUN = 32
RUNS_OF_A_CHAT = 3
_VOCABULARY = 150_000
_MASK = 2**64 - 1
_TOKENS = np.random.default_rng(1).integers(0, _VOCABULARY, 1 << 20)
_END = b"\xff" * 8


def batches(blocks: int) -> int:
    """How many batches bring so many blocks."""
    return blocks // RUN


def payload(source: int, number: int) -> bytes:
    """A batch of a source; the same whenever it is asked for, and different from all others."""
    start = _start(source, number)
    at = start % (len(_TOKENS) - RUN * BLOCK)
    tokens = _TOKENS[at : at + RUN * BLOCK] ^ (start >> 40 & 0xFFFF)
    event = {
        "type": "BlockStored",
        "block_hashes": [start + n & _MASK for n in range(RUN)],
        "parent_block_hash": _start(source, number - 1) + RUN - 1 & _MASK
        if number % RUNS_OF_A_CHAT
        else None,
        "token_ids": tokens.tolist(),
        "block_size": BLOCK,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    return msgspec.msgpack.encode([1.8e9 + number, [event], 0])


def _start(source: int, number: int) -> int:
    """The first hash of a batch: well mixed, as hashes are (the multiplier is 2**64 over the golden
    ratio).
    """
    return (source * 1_000_003 + number + 1) * 0x9E3779B97F4A7C15 & _MASK


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="+", help="EVENTS:REPLAY")
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument(
        "--replayed", type=float, required=True, help="share of the blocks told before anybody listens"
    )
    parser.add_argument("--live-per-s", type=float, required=True, help="batches of all sources together")
    args = parser.parse_args()
    with zmq.Context() as context:
        _publish(context, args.sources, batches(args.blocks), args.replayed, args.live_per_s)


def _publish(
    context: "zmq.Context[zmq.Socket[bytes]]", sources: list[str], total: int, share: float, rate: float
) -> None:
    poller = zmq.Poller()
    pubs, routers = [], {}
    for number, source in enumerate(sources):
        events, replay = source.split(":")
        pub, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        pub.sndhwm = 100_000
        router.sndhwm = 0  # a vLLM with a large queue; a small one makes a router ask several times
        pub.bind(f"tcp://127.0.0.1:{events}")
        router.bind(f"tcp://127.0.0.1:{replay}")
        poller.register(router, zmq.POLLIN)
        pubs.append(pub)
        routers[router] = number
    published = [int(total * share)] * len(sources)
    turns = itertools.cycle(range(len(sources)))
    asked: set[int] = set()
    replays: list[tuple[int, zmq.Socket[bytes], bytes, int]] = []
    due = time.monotonic()
    while True:
        for router, _ in poller.poll(0 if replays else 1):
            client, *_, start = router.recv_multipart()
            asked.add(routers[router])
            replays.append((routers[router], router, client, int.from_bytes(start, "big")))
        if replays:
            number, router, client, start = replays.pop(0)
            upto = min(start + 50, published[number])  # a piece, then others
            for step in range(start, upto):
                router.send_multipart((client, b"", b"", step.to_bytes(8, "big"), payload(number, step)))
            if upto < published[number]:
                replays.append((number, router, client, upto))
            else:
                router.send_multipart((client, b"", b"", _END, b""))
        while len(asked) == len(sources) and time.monotonic() >= due and min(published) < total:
            due = max(due, time.monotonic() - 1.0) + 1.0 / rate
            number = next(turns)
            if published[number] < total:
                step = published[number]
                pubs[number].send_multipart((b"", step.to_bytes(8, "big"), payload(number, step)))
                published[number] += 1


if __name__ == "__main__":
    main()
