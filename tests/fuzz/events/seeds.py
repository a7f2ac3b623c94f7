"""Where hostile messages begin: those that real engines published, as recorded, and the same as older engines
wrote them."""

import struct
from pathlib import Path
from typing import Any

import msgspec

_DATA = Path(__file__).resolve().parents[2] / "kvevents" / "data"
_RECORDINGS = ("kv_events_0_32_int.bin", "kv_events_0_32_bytes.bin")


def recorded() -> list[bytes]:
    """The payloads of all recorded messages."""
    return [message[-1] for name in _RECORDINGS for message in _messages((_DATA / name).read_bytes())]


def batches() -> list[list[Any]]:
    """The same as plain values, with maps and with arrays for events."""
    found = []
    for payload in recorded():
        ts, events, rank = msgspec.msgpack.decode(payload)
        found += [[ts, events, rank], [ts, [_as_array(event) for event in events], rank]]
    return found


def _messages(recording: bytes) -> list[list[bytes]]:
    """A 4-byte frame count, then each frame behind its 4-byte length."""
    messages, at = [], 0
    while at < len(recording):
        (count,) = struct.unpack_from(">I", recording, at)
        at += 4
        frames = []
        for _ in range(count):
            (length,) = struct.unpack_from(">I", recording, at)
            frames.append(recording[at + 4 : at + 4 + length])
            at += 4 + length
        messages.append(frames)
    return messages


def _as_array(event: dict[str, Any]) -> list[Any]:
    return list(event.values())  # engines write members in the order of the array's places
