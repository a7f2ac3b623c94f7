"""Batches of KV events that no engine should send: right ones changed, and ones made to be as bad as the wire
allows.

All randomness comes from the generator passed in, so that a seed and a number name a payload for ever.
"""

import copy
import random
from collections.abc import Callable
from typing import Any

import msgspec

from tests.fuzz.events.seeds import batches, recorded
from tests.fuzz.http.values import scrambled

_encode = msgspec.msgpack.encode
_NAN, _INF = float("nan"), float("inf")

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 16, 31, 32, 33, 255, 256, 65_536, 2**31, 2**32 - 1, 2**32, 2**63 - 1),
    *(2**63, 2**64 - 1, -(2**31), -(2**63), 0.0, -0.0, 1.5, 1e300, -1e300, 5e-324, _NAN, _INF, -_INF),
    *(
        "",
        "GPU",
        "CPU",
        "gpu",
        "\x00",
        "\u2028",
        "x" * 300,
        "full_attention",
        "sliding_window",
        "BlockStored",
    ),
    *(b"", b"\x00", b"x" * 31, b"x" * 32, b"x" * 33, b"x" * 64, b"x" * 65, b"x" * 5000),
    *(
        [],
        [[]],
        [None],
        [0],
        [-1],
        [1, "a"],
        [b"x" * 32],
        {},
        {"a": 1},
        {"type": "BlockStored"},
        [[1, 2], [3]],
    ),
    *(msgspec.msgpack.Ext(1, b"x"), msgspec.msgpack.Ext(-1, b"\xff" * 12), msgspec.msgpack.Ext(5, b"")),
)

_HEADERS = (
    *(b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xde\xff\xff", b"\x9f", b"\x8f"),
    *(
        b"\xdb\xff\xff\xff\xff",
        b"\xda\xff\xff",
        b"\xd9\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc5\xff\xff",
        b"\xbf",
    ),
    *(
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc1",
        b"\xd4\xff\x00",
        b"\xd6\xff\xff\xff\xff\xff",
        b"\xcf" + b"\xff" * 8,
    ),
    *(b"\xc7\x0c\xff" + b"\xff" * 12, b"\xcb\x7f\xf8" + bytes(6), b"\xd3\x80" + bytes(7), b"\xc0"),
)
"""Formats of the MessagePack specification: lengths with nothing behind them, a code that is never used, odd
numbers."""

_TIERS = ("GPU", "GPU", "GPU", None, "CPU", "DISK")

Maker = Callable[[random.Random], bytes]


class Payloads:
    """Makes payloads, and says of which kind."""

    def __init__(self) -> None:
        self._recorded = recorded()
        self._batches = batches()
        self._kinds: list[tuple[str, int, Maker]] = [
            ("as recorded", 600, lambda rng: rng.choice(self._recorded)),
            ("bytes changed", 2000, lambda rng: scrambled(rng, rng.choice(self._recorded))),
            ("cut off", 800, self._cut_off),
            ("values changed", 2600, self._changed),
            (
                "fields at random",
                1800,
                lambda rng: _batch(rng, [_any_event(rng) for _ in range(rng.randrange(4))]),
            ),
            ("odd runs", 1000, lambda rng: _batch(rng, [_run(rng) for _ in range(rng.choice((1, 2, 8)))])),
            ("waiting for parents", 400, _orphans),
            ("many tiers", 50, _tiers),
            ("lying headers", 400, self._lying),
            ("deeply nested", 200, _nested),
            ("random bytes", 200, lambda rng: rng.randbytes(rng.choice((0, 1, 2, 8, 100, 2000)))),
            ("large", 2, _large),
        ]
        self._weights = [weight for _, weight, _ in self._kinds]

    def make(self, rng: random.Random) -> tuple[str, bytes]:
        """A kind and a payload of it."""
        ((kind, _, maker),) = rng.choices(self._kinds, self._weights)
        return kind, maker(rng)

    def _cut_off(self, rng: random.Random) -> bytes:
        payload = rng.choice(self._recorded)
        return payload[: rng.randrange(len(payload))]

    def _changed(self, rng: random.Random) -> bytes:
        batch = copy.deepcopy(rng.choice(self._batches))
        for _ in range(rng.randrange(1, 4)):
            _change(rng, batch)
        return _encode(batch)

    def _lying(self, rng: random.Random) -> bytes:
        payload, header = rng.choice(self._recorded), rng.choice(_HEADERS)
        at = rng.choice((0, 1, 10, 11, rng.randrange(len(payload))))
        return payload[:at] + header + payload[at + rng.choice((0, 1, 5)) :]


def _change(rng: random.Random, batch: list[Any]) -> None:
    if not batch:
        return
    where, key = _somewhere(rng, batch)
    match rng.randrange(6):
        case 0:
            del where[key]
        case 1 if isinstance(where, list):
            where.insert(key, where[key])
        case 2 if isinstance(where, list):
            other = rng.randrange(len(where))
            where[key], where[other] = where[other], where[key]
        case 3:
            for _ in range(rng.choice((1, 2, 9, 150))):
                where[key] = [where[key]]
        case _:
            where[key] = copy.deepcopy(rng.choice(_ODD))


def _somewhere(rng: random.Random, batch: list[Any]) -> tuple[Any, Any]:
    """A container in the batch and a key or index in it."""
    where: Any = batch
    while True:
        key: Any = rng.choice(list(where)) if isinstance(where, dict) else rng.randrange(len(where))
        inner = where[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            return where, key
        where = inner


def _batch(rng: random.Random, events: list[Any]) -> bytes:
    ts = rng.choice((0.0, 1.8e9, 1.8e9, -1.0, _NAN, _INF, 1e300, 5, None, "now"))
    match rng.randrange(8):
        case 0:
            return _encode({"ts": ts, "events": events, "data_parallel_rank": rng.choice(_ODD)})
        case 1:
            return _encode([ts, events, rng.choice(_ODD), *rng.choices(_ODD, k=rng.randrange(4))])
        case 2:
            return _encode([ts, events])
        case _:
            return _encode([ts, events, 0])


def _hash(rng: random.Random) -> Any:
    match rng.randrange(10):
        case 0:
            return rng.choice(_ODD)
        case 1:
            return rng.randbytes(rng.choice((0, 1, 8, 32, 33, 64, 65, 1000)))
        case 2:
            return rng.getrandbits(64)
        case _:
            return rng.randrange(40)  # few, so that they meet again


def _run(rng: random.Random) -> dict[str, Any]:
    """A run whose every field may be odd, and that may well be right."""
    blocks = rng.choice((0, 1, 1, 2, 3, 13, 40))
    size = 4 if rng.random() < 0.9 else rng.choice((1, 2, 16, 32, 80, 0, -1))
    tokens = [rng.choice((rng.randrange(5), 2**32 - 1, 7)) for _ in range(blocks * max(size, 0))]
    if tokens and rng.random() < 0.1:
        tokens[rng.randrange(len(tokens))] = rng.choice((-1, 2**32, 2**63))
    if rng.random() < 0.05:
        tokens = tokens[:-1]
    run: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": [_hash(rng) for _ in range(blocks)],
        "parent_block_hash": rng.choice((None, None, _hash(rng))),
        "token_ids": tokens,
        "block_size": size,
        "medium": rng.choice(_TIERS) if rng.random() < 0.9 else f"tier {rng.randrange(10_000)}",
    }
    if rng.random() < 0.3:
        run["extra_keys"] = [_extra(rng) for _ in range(blocks + rng.choice((0, 0, 0, 1)))]
    if rng.random() < 0.1:
        run["lookahead_token_ids"] = _lookahead(rng, blocks)
    if rng.random() < 0.2:
        run["lora_name"] = rng.choice(("alpha", "", "x" * 255, "x" * 257, f"adapter {rng.randrange(10_000)}"))
    if rng.random() < 0.2:
        run["kv_cache_spec_kind"] = rng.choice(
            ("full_attention", "mla_attention", "sliding_window", "mamba", "")
        )
        run["group_idx"] = rng.choice((0, 0, 1, -1, 2**63))
    return run


def _extra(rng: random.Random) -> Any:
    match rng.randrange(6):
        case 0:
            return None
        case 1:
            return [f"salt {rng.randrange(100_000)}"]
        case 2:
            return [["image", rng.randrange(1000)], "salt"]
        case 3:
            value: Any = rng.choice(_ODD)
            for _ in range(rng.choice((1, 6, 7, 8, 9, 500))):
                value = [value]
            return value
        case 4:
            return [rng.choice(_ODD) for _ in range(3)]
        case _:
            return ["s" * rng.choice((1, 100, 1025, 20_000))]


def _lookahead(rng: random.Random, blocks: int) -> Any:
    """What follows each block: as engines write it, or with too few, too many or impossible tokens."""
    many = rng.choice((0, 1, 1, 1, 3, 64, 65))
    lists: list[Any] = [[rng.randrange(5)] * many for _ in range(blocks + rng.choice((0, 0, 0, 0, 1, -1)))]
    if lists and rng.random() < 0.2:
        lists[rng.randrange(len(lists))] = rng.choice(([], [1, 2], [-1], [2**32], rng.choice(_ODD)))
    return lists


def _any_event(rng: random.Random) -> Any:
    match rng.randrange(6):
        case 0:
            return rng.choice(_ODD)
        case 1:
            return {"type": "BlockRemoved", "block_hashes": [_hash(rng) for _ in range(rng.randrange(4))]}
        case 2:
            kind = rng.choice(("BlockStored", "BlockRemoved", "AllBlocksCleared", "BlockMoved", 7, None))
            return [kind, *rng.choices(_ODD, k=rng.randrange(12))]
        case 3:
            run = _run(rng)
            run.update({name: rng.choice(_ODD) for name in rng.choices(list(run), k=2)})
            return run
        case 4:
            return {"type": "AllBlocksCleared", "why": rng.choice(_ODD)}
        case _:
            return _run(rng)


def _orphans(rng: random.Random) -> bytes:
    """Blocks whose parents never come, come late, or are the blocks themselves."""
    names = [rng.randrange(200) for _ in range(rng.choice((1, 5, 100)))]
    events = [
        {
            "type": "BlockStored",
            "block_hashes": [name],
            "parent_block_hash": rng.choice((name, name + 1, rng.choice(names))),
            "token_ids": [name] * 4,
            "block_size": 4,
            "medium": rng.choice(_TIERS),
        }
        for name in names
    ]
    return _batch(rng, events)


def _tiers(rng: random.Random) -> bytes:
    run = {"type": "BlockStored", "parent_block_hash": None, "token_ids": [1, 2, 3, 4], "block_size": 4}
    return _batch(rng, [run | {"block_hashes": [n], "medium": f"tier {n}"} for n in range(rng.randrange(20))])


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice((10, 100, 1000, 10_000, 100_000))
    level = rng.choice((b"\x91", b"\x81\xa1a", b"\x82\xa4type\xabBlockStored\xaaextra_keys", b"\x92\x00"))
    inner = level * depth + rng.choice((b"", b"\x00", b"\xc0"))
    return rng.choice((inner, b"\x93\x00\x91" + inner, b"\x93\x00" + inner + b"\x00"))


def _large(rng: random.Random) -> bytes:
    """What costs most for its bytes: lists of a hundred thousand to a million values of one byte, and long
    runs."""
    many = rng.choice((100_000, 300_000, 1_000_000))
    start = rng.getrandbits(60)
    run: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": [start],
        "parent_block_hash": None,
        "token_ids": [1],
        "block_size": 1,
    }
    match rng.randrange(10):
        case 9:
            events: list[Any] = [run | {"lookahead_token_ids": [[]] * many}]
        case 0:
            events = [7] * many
        case 1:
            events = [{"type": "AllBlocksCleared"}] * (many // 8)
        case 2:
            events = [run | {"block_hashes": list(range(start, start + many)), "token_ids": [1] * many}]
        case 3:
            events = [run | {"block_size": many, "token_ids": [1] * many}]
        case 4:
            events = [run | {"extra_keys": [[[]] * many]}]
        case 5:
            events = [run | {"extra_keys": [["x" * many]]}]
        case 6:
            hashes = list(range(start, start + many))
            events = [run | {"parent_block_hash": 5, "block_hashes": hashes, "token_ids": [1] * many}]
        case 7:
            events = [{"type": "BlockRemoved", "block_hashes": [start] * many}]
        case _:
            return rng.randbytes(1024) * (many * 17 // 1024)  # up to 17 MB: more than is taken
    return _encode([0.0, events, 0])
