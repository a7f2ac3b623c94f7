"""What a vLLM 0.32 engine published in a recorded session, and the session."""

import struct
from pathlib import Path
from typing import Any

import msgspec

DATA = Path(__file__).parent / "data"


class Step(msgspec.Struct):
    what: str
    lora_name: str | None
    cache_salt: str | None
    answers: int
    prompt_token_ids: list[int]
    cached_tokens: int | None
    """What the engine reported."""
    messages: list[int]
    """The messages this step caused."""


class Session(msgspec.Struct):
    engine: str
    steps: list[Step]


def frames(name: str) -> list[list[bytes]]:
    """The messages of a recording: a 4-byte frame count, then each frame behind its 4-byte length."""
    rest = (DATA / f"{name}.bin").read_bytes()
    messages = []
    while rest:
        message = []
        (count,), rest = struct.unpack(">I", rest[:4]), rest[4:]
        for _ in range(count):
            (length,) = struct.unpack(">I", rest[:4])
            message.append(rest[4 : 4 + length])
            rest = rest[4 + length :]
        messages.append(message)
    return messages


def session() -> Session:
    return msgspec.json.decode((DATA / "kv_events_0_32_int.json").read_bytes(), type=Session)


def as_arrays(payload: bytes) -> bytes:
    """The batch as vLLM up to 0.23 would have written it."""
    ts, events, rank = msgspec.msgpack.decode(payload)
    order = {
        "BlockStored": (
            "block_hashes",
            "parent_block_hash",
            "token_ids",
            "block_size",
            "lora_id",
            "medium",
            "lora_name",
            "extra_keys",
            "group_idx",
            "kv_cache_spec_kind",
        ),
        "BlockRemoved": ("block_hashes", "medium", "group_idx"),
        "AllBlocksCleared": (),
    }

    def array(event: dict[str, Any]) -> list[Any]:
        return [event["type"], *(event.get(field) for field in order[event["type"]])]

    return msgspec.msgpack.encode([ts, [array(event) for event in events], rank])
