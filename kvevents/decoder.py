"""Whatever bytes arrive, the readable events of a batch come out in order, and the unreadable ones are
counted.

Events are maps since vLLM 0.24 and arrays before; a batch is an array, and a map is understood too. Replayed
messages have two or three parts behind an empty delimiter, which the sockets of some clients remove.

What one call does is bounded for all bytes: a small payload is decoded at once, a large one event by event,
and a payload that is larger than any batch of an engine is not decoded.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from kvevents.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EngineHash,
    Event,
    EventBatch,
    Reason,
)

MAX_PAYLOAD_BYTES = 16 << 20
"""The largest payload of a batch: three million tokens, a hundred times what an engine's largest step
announces."""

# The most events of one batch: a prompt of four million tokens is removed, by one event for each of its
# blocks.
_MAX_EVENTS = 1 << 18
# The largest event: a run of a million tokens.
_MAX_EVENT_BYTES = 8 << 20
# The largest extra keys of one event: multi-modal items in all blocks of 50 000 tokens. Lists of lists cost
# much to decode.
_MAX_EXTRA_BYTES = 256 << 10
# The largest lookahead of one event: one token behind each block of a run of a million.
_MAX_LOOKAHEAD_BYTES = 512 << 10
# Payloads up to this size are decoded at once: a millisecond or two, whatever they are.
_AT_ONCE_BYTES = 128 << 10
# The end of the year 9999: later times have no date.
_MAX_TS_S = 253_402_300_799.0
# The place of the extra keys in the array form, where the tag has place 0.
_EXTRA_KEYS_PLACE = 8
_NUMBER_BYTES = 8
# vLLM's ZmqEventPublisher.END_SEQ.
_END_OF_REPLAY = -1

# What msgspec raises for bytes that it cannot decode; RecursionError for a nesting without end.
_UNDECODABLE = (ValueError, TypeError, OverflowError, RecursionError)


class UnreadableMessage(ValueError):  # noqa: N818  # an outcome of a stranger's bytes, not a failure of ours
    """The frames hold no message, or the payload no batch: nothing of it is used."""


class Message(NamedTuple):
    """One published batch, still encoded."""

    topic: bytes
    number: int
    """The sequence number, from 0 for each publisher process."""
    payload: bytes


class Decoded(NamedTuple):
    """A batch's readable events in order, and how many were skipped, by reason."""

    batch: EventBatch
    skipped: dict[Reason, int]


class Batch(NamedTuple):
    """A batch whose events are decoded one by one, when they are asked for."""

    ts: float
    """Seconds since the epoch on the engine's clock; 0 for a time without a date."""
    rank: int | None
    length: int
    """The number of events, readable or not."""
    events: Iterable[Event | Reason]
    """In order, with the reason in place of an event that is skipped."""


class _StoredArray(msgspec.Struct, array_like=True, tag="BlockStored", gc=False):
    """The fields of vLLM's BlockStored in their order; older releases stop after `lora_id`, `medium` or
    `lora_name`.
    """

    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    lora_name: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class _RemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved", gc=False):
    block_hashes: list[EngineHash]
    medium: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    group_idx: int | None = None


class _ClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    pass


class _Tag(msgspec.Struct, gc=False):
    type: str


_whole_batch = msgspec.msgpack.Decoder(EventBatch)
_outer_array = msgspec.msgpack.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=256)])
_outer_map = msgspec.msgpack.Decoder(Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=256)])
_raw_events = msgspec.msgpack.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=_MAX_EVENTS)])
_map_event = msgspec.msgpack.Decoder(BlockStored | BlockRemoved | AllBlocksCleared)
_array_event = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray)
_map_tag = msgspec.msgpack.Decoder(_Tag)
_array_tag = _outer_array
_text = msgspec.msgpack.Decoder(str)
_number = msgspec.msgpack.Decoder(float)
_rank = msgspec.msgpack.Decoder(int | None)

_STORES = "BlockStored"
_REMOVES = frozenset({"BlockRemoved", "AllBlocksCleared"})
_SOUNDS_LIKE_REMOVAL = re.compile("remov|clear|evict|reset|delet", re.IGNORECASE)


def read_live(frames: Sequence[bytes]) -> Message:
    """The message in the frames of a SUB socket: topic, number, payload.

    Raises UnreadableMessage for another number of frames, and for a sequence number that is not 8 bytes or is
    negative.
    """
    if len(frames) != 3:
        raise UnreadableMessage(f"{len(frames)} frames instead of 3")
    topic, number_bytes, payload = frames
    number = _read_number(number_bytes)
    if number < 0:
        raise UnreadableMessage(f"sequence number {number}")
    return Message(topic, number, payload)


def read_replay(frames: Sequence[bytes]) -> Message | None:
    """The message in the frames of a replay, with or without delimiter and topic. None is the end marker.

    Raises UnreadableMessage as `read_live` does.
    """
    if not 2 <= len(frames) <= 4:
        raise UnreadableMessage(f"{len(frames)} frames instead of 2 to 4")
    *before, number_bytes, payload = frames
    number = _read_number(number_bytes)
    if number == _END_OF_REPLAY:
        return None
    if number < 0:
        raise UnreadableMessage(f"sequence number {number}")
    return Message(before[-1] if before else b"", number, payload)


def decode(payload: bytes) -> Decoded:
    """The batch in `payload`, all of it read. Raises UnreadableMessage as `read_batch` does."""
    batch = read_batch(payload)
    events: list[Event] = []
    skipped: dict[Reason, int] = {}
    for event in batch.events:
        if isinstance(event, Reason):
            skipped[event] = skipped.get(event, 0) + 1
        else:
            events.append(event)
    return Decoded(EventBatch(batch.ts, events, batch.rank), skipped)


def read_batch(payload: bytes) -> Batch:
    """The batch in `payload`. Raises UnreadableMessage, and nothing else, if it is no batch or is too large
    for one.
    """
    if len(payload) <= _AT_ONCE_BYTES:
        try:
            whole = _whole_batch.decode(payload)
        except _UNDECODABLE:
            pass
        else:
            return Batch(_dated(whole.ts), whole.data_parallel_rank, len(whole.events), whole.events)
    elif len(payload) > MAX_PAYLOAD_BYTES:
        raise UnreadableMessage(f"a payload of {len(payload)} bytes")
    ts, raw_events, rank = _split(payload)
    return Batch(ts, rank, len(raw_events), map(_decode_event, raw_events))


def _read_number(number_bytes: bytes) -> int:
    if len(number_bytes) != _NUMBER_BYTES:
        raise UnreadableMessage(f"a sequence number of {len(number_bytes)} bytes instead of 8")
    return int.from_bytes(number_bytes, "big", signed=True)


def _split(payload: bytes) -> tuple[float, list[msgspec.Raw], int | None]:
    try:
        if _is_map(payload):
            parts = _outer_map.decode(payload)
            ts, events = parts.get("ts"), parts["events"]
            rank = parts.get("data_parallel_rank")
        else:
            ts, events, *rest = _outer_array.decode(payload)
            rank = rest[0] if rest else None
        return _lenient_ts(ts), _raw_events.decode(events), _lenient_rank(rank)
    except (*_UNDECODABLE, KeyError) as error:
        raise UnreadableMessage("the payload is no batch of events") from error


def _dated(ts: float) -> float:
    return ts if 0.0 <= ts <= _MAX_TS_S else 0.0


def _lenient_ts(raw: msgspec.Raw | None) -> float:
    try:
        return 0.0 if raw is None else _dated(_number.decode(raw))
    except _UNDECODABLE:
        return 0.0


def _lenient_rank(raw: msgspec.Raw | None) -> int | None:
    try:
        return None if raw is None else _rank.decode(raw)
    except _UNDECODABLE:
        return None


def _decode_event(raw: msgspec.Raw | bytes) -> Event | Reason:
    raw = bytes(raw)
    if len(raw) > _MAX_EVENT_BYTES:
        return Reason.BROKEN_REMOVAL  # what is not decoded may have been a removal
    if len(raw) > _AT_ONCE_BYTES and _is_too_large(raw):
        return _why_skipped(raw)
    try:
        if _is_map(raw):
            event: Event = _map_event.decode(raw)
            return event
        return _from_array(_array_event.decode(raw))
    except _UNDECODABLE:
        return _why_skipped(raw)


def _why_skipped(raw: bytes) -> Reason:
    tag = _tag_of(raw)
    if tag == _STORES:
        return Reason.BROKEN_EVENT
    if tag is None or tag in _REMOVES or _SOUNDS_LIKE_REMOVAL.search(tag):
        return Reason.BROKEN_REMOVAL
    return Reason.UNKNOWN_TYPE


def _from_array(event: _StoredArray | _RemovedArray | _ClearedArray) -> Event:
    if isinstance(event, _StoredArray):
        return BlockStored(*(getattr(event, field) for field in _StoredArray.__struct_fields__))
    if isinstance(event, _RemovedArray):
        return BlockRemoved(event.block_hashes, event.medium, event.group_idx)
    return AllBlocksCleared()


def _tag_of(raw: bytes) -> str | None:
    try:
        if _is_map(raw):
            return _map_tag.decode(raw).type
        parts = _array_tag.decode(raw)
        return _text.decode(parts[0]) if parts else None
    except _UNDECODABLE:
        return None


def _is_too_large(raw: bytes) -> bool:
    """Whether an event is larger than any of an engine, or would cost too much to decode: tokens cost little,
    lists of lists much.
    """
    lookahead = None
    try:
        if _is_map(raw):
            fields = _outer_map.decode(raw)
            extra, lookahead = fields.get("extra_keys"), fields.get("lookahead_token_ids")
        else:
            extra = next(iter(_outer_array.decode(raw)[_EXTRA_KEYS_PLACE:]), None)
    except _UNDECODABLE:
        return True
    return _is_longer(extra, _MAX_EXTRA_BYTES) or _is_longer(lookahead, _MAX_LOOKAHEAD_BYTES)


def _is_longer(raw: msgspec.Raw | None, max_bytes: int) -> bool:
    return raw is not None and len(bytes(raw)) > max_bytes


def _is_map(raw: bytes) -> bool:
    # The map formats of the MessagePack specification: fixmap 0x80-0x8f, map 16, map 32.
    return bool(raw) and (raw[0] & 0xF0 == 0x80 or raw[0] in {0xDE, 0xDF})
