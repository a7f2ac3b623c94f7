"""Invariant: batches are numbered from 0 in the order in which they happen, for as long as this publisher
lives.

It behaves as vLLM's event publisher: a PUB socket that drops what no subscriber takes, and a ROUTER that
replays the last batches on demand, one request at a time, and silently drops messages to a slow reader. It
says nothing at shutdown, and the next publisher begins at 0 again. (The socket is an XPUB, which a subscriber
cannot distinguish from a PUB, so that a test can wait for subscriptions.)
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from kvevents import AllBlocksCleared, BlockRemoved, BlockStored, Event
from proxy.simulation.engine.block_hashes import int_hash
from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)

END = (-1).to_bytes(8, "big", signed=True)
_pack = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class EventForm:
    """How events look on the wire."""

    arrays: bool = False
    """Whether events are arrays, as vLLM wrote them before 0.24."""
    bytes_hashes: bool = False
    """Whether hashes are 32 bytes (VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0) instead of 64-bit integers."""
    foreign: bool = False
    """Whether there are also events of unknown types, as a later release may write."""
    sessions: bool = True
    """Whether stored blocks name the session of their request; older releases do not."""


class EventWriter:
    """Encodes events as vLLM does: fields in its order, nulls where it writes nulls."""

    def __init__(self, form: EventForm) -> None:
        self._arrays = form.arrays
        self._foreign = form.foreign
        self._sessions = form.sessions and not form.arrays
        self._hash: Callable[[Any], int | bytes] = bytes if form.bytes_hashes else int_hash

    def batch(self, events: Sequence[Event], rank: int, ts: float) -> bytes:
        """The payload of a batch."""
        return _pack([ts, [self._event(event) for event in events], rank])

    def _event(self, event: Event) -> Any:
        fields = self._fields(event)
        if self._foreign:
            fields |= {"type": f"V2.{fields['type']}"}
        return list(fields.values()) if self._arrays else fields

    def _fields(self, event: Event) -> dict[str, Any]:
        match event:
            case BlockStored():
                fields = {
                    "type": "BlockStored",
                    "block_hashes": [self._hash(h) for h in event.block_hashes],
                    "parent_block_hash": None
                    if event.parent_block_hash is None
                    else self._hash(event.parent_block_hash),
                    "token_ids": event.token_ids,
                    "block_size": event.block_size,
                    "lora_id": event.lora_id,
                    "medium": event.medium,
                    "lora_name": event.lora_name,
                    "extra_keys": event.extra_keys,
                    "group_idx": event.group_idx,
                    "kv_cache_spec_kind": event.kv_cache_spec_kind,
                }
                if event.session_id is not None and self._sessions:
                    fields["session_id"] = event.session_id
                if event.lookahead_token_ids is not None and not self._arrays:
                    fields["lookahead_token_ids"] = event.lookahead_token_ids
                return fields
            case BlockRemoved():
                return {
                    "type": "BlockRemoved",
                    "block_hashes": [self._hash(h) for h in event.block_hashes],
                    "medium": event.medium,
                    "group_idx": event.group_idx,
                }
            case AllBlocksCleared():
                return {"type": "AllBlocksCleared"}


class Publisher:
    """The event sockets of one rank. `drop` and `freeze` are faults."""

    def __init__(
        self,
        *,
        rank: int = 0,
        topic: str = "",
        buffer_steps: int = 10_000,
        hwm: int = 100_000,
        form: EventForm,
        clock_offset_s: float = 0.0,
    ) -> None:
        self._rank = rank
        self._topic = topic.encode()
        self._writer = EventWriter(form)
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._hwm = hwm
        self._clock_offset_s = clock_offset_s
        self._context = zmq.asyncio.Context()
        self._pub: zmq.Socket[bytes] | None = None
        self._router: zmq.asyncio.Socket | None = None
        self._tasks = TaskOwner("event publisher")
        self._frozen: deque[tuple[int, bytes]] = deque()
        self._flows = asyncio.Event()
        self._flows.set()
        self._drop = 0
        self._subscriptions = 0
        self.next_number = 0
        """The number of the next batch."""
        self.replays = 0
        """Replays answered."""
        self.endpoint: str | None = None
        self.replay_endpoint: str | None = None

    def open(self, endpoint: str, replay: str | None) -> None:
        """Bind (or connect: an endpoint without `*`) the publisher and bind the replay socket.

        A wildcard host is bound on the loopback address only, and reported as the wildcard it is in vLLM.
        """
        self._pub = zmq.Context(self._context).socket(zmq.XPUB)
        self._pub.set(zmq.XPUB_VERBOSER, 1)
        self._pub.set(zmq.LINGER, 0)
        self._pub.set_hwm(self._hwm)
        if "*" in endpoint or endpoint.startswith(("ipc://", "inproc://")):
            self.endpoint = self._bind(self._pub, endpoint)
        else:
            self._pub.connect(endpoint)
            self.endpoint = endpoint
        if replay is not None:
            self._router = self._context.socket(zmq.ROUTER)
            self._router.set(zmq.LINGER, 0)
            self.replay_endpoint = self._bind(self._router, replay)
            self._tasks.create(self._serve_replays(self._router), name="replay")

    async def close(self) -> None:
        """Close the sockets, without a message."""
        await self._tasks.close()
        for socket in (self._pub, self._router):
            if socket is not None:
                socket.close(linger=0)
        self._pub = self._router = None
        self._context.term()

    def publish(self, events: Sequence[Event]) -> None:
        """Number a batch, keep it for replays and send it."""
        number, self.next_number = self.next_number, self.next_number + 1
        payload = self._writer.batch(events, self._rank, time.time() + self._clock_offset_s)
        if self._flows.is_set():
            self._send(number, payload)
        else:
            self._frozen.append((number, payload))

    def subscriptions(self) -> int:
        """The number of subscriptions that have arrived and not ended; each subscriber gets the next
        batch.
        """
        while self._pub is not None and self._pub.poll(0):
            message = self._pub.recv()  # one byte, 1 or 0, and the topic
            self._subscriptions += 1 if message.startswith(b"\x01") else -1
        return self._subscriptions

    def drop(self, messages: int) -> None:
        """Lose the next `messages` live messages; a replay still has them."""
        self._drop += messages

    def freeze(self) -> None:
        """The publishing thread hangs: batches and replay requests pile up."""
        self._flows.clear()

    def thaw(self) -> None:
        """The publishing thread continues where it stopped."""
        self._flows.set()
        while self._frozen:
            self._send(*self._frozen.popleft())

    def _send(self, number: int, payload: bytes) -> None:
        self._buffer.append((number, payload))
        if self._drop:
            self._drop -= 1
        elif self._pub is not None:
            self.subscriptions()  # read, or the messages of subscribers would pile up
            self._pub.send_multipart((self._topic, number.to_bytes(8, "big"), payload))

    @staticmethod
    def _bind(socket: zmq.Socket[Any], endpoint: str) -> str:
        wildcard = endpoint.startswith("tcp://*:")
        here = endpoint.replace("*", "127.0.0.1", 1) if wildcard else endpoint
        try:
            socket.bind(here)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"{here}: {error.strerror}") from error
        bound = socket.get_string(zmq.LAST_ENDPOINT)
        return f"tcp://*:{bound.rsplit(':', 1)[1]}" if wildcard else bound

    async def _serve_replays(self, router: zmq.asyncio.Socket) -> None:
        plain: zmq.Socket[bytes] = zmq.Socket.shadow(
            router
        )  # its sends must not block: a slow reader loses messages instead
        while True:
            frames = await router.recv_multipart()
            await self._flows.wait()
            if len(frames) != 3:
                log.warning("invalid replay request of %d frames", len(frames))
                continue
            peer, _, start = frames
            first = int.from_bytes(start, "big")
            for number, payload in tuple(self._buffer):
                if number >= first:
                    plain.send_multipart((peer, b"", self._topic, number.to_bytes(8, "big"), payload))
            plain.send_multipart((peer, b"", b"", END, b""))
            self.replays += 1
