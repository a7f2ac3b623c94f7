"""Every socket that is opened is closed, and no receive waits: only messages that have arrived are taken.

This is the only module that speaks ZeroMQ. Sockets are polled and then drained without waiting, a bounded
number of messages at a time: a receive that waits can lose a message when it is cancelled, and one on a busy
socket never lets the loop run.
"""

import asyncio
import itertools
import logging
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import zmq

from kvevents.decoder import MAX_PAYLOAD_BYTES

log = logging.getLogger(__name__)

MAX_DRAINED = 256
"""The most messages that are taken of one socket between two turns of the event loop."""

# Messages that ZeroMQ holds for this process. More live ones stay with the publisher, whose own queue holds
# 100 000 (vLLM's KVEventsConfig.hwm); a ROUTER that cannot send loses what it replays.
_LIVE_HWM = 1_000
_REPLAY_HWM = 100_000
_RECONNECT_MS = 100
# So that a restarted engine is heard within a second.
_MAX_RECONNECT_MS = 500
_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 10_000
# After this many bytes of a socket the next message waits for another turn.
_MAX_DRAINED_BYTES = 1 << 20
# The most sockets of one context: up to four for each source. ZeroMQ's own limit is 1023.
_MAX_SOCKETS = 65_535
# For the names of monitors: the name of one that was closed may stay taken for a while.
_numbers = itertools.count()
_LINK_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
# What opening raises for an address that cannot be used, and when no socket is left.
_CANNOT_OPEN = (zmq.ZMQError, UnicodeEncodeError)


class CannotOpenError(Exception):
    """A subscription could not be opened: its address is wrong, or no socket is left."""


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """Where one rank of an instance publishes its events; endpoints as ZeroMQ writes them."""

    rank: int
    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""
    """Only topics with this prefix are heard."""
    bind: bool = False
    """Bind `endpoint`, because the engine connects to it."""


Context = zmq.Context[zmq.Socket[bytes]]
"""ZeroMQ's own threads; close it with `term()` once no subscriber uses it."""


def open_context() -> Context:
    """A context with room for the sockets of some thousand sources."""
    context: Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
    return context


class Wire:
    """The sockets of one subscription. Opening raises CannotOpenError; nothing else does."""

    def __init__(self, context: Context, address: SourceAddress, wake: asyncio.Event) -> None:
        self._context = context
        self._address = address
        self._wake = wake
        self._open: list[zmq.Socket[bytes]] = []
        self._replay: zmq.Socket[bytes] | None = None
        try:
            self._sub = self._new(zmq.SUB, address.endpoint)
            self._sub.rcvhwm = _LIVE_HWM
            self._sub.setsockopt(zmq.SUBSCRIBE, address.topic.encode())
            self._sub.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            self._sub.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
            self._sub.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
            self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, _MAX_RECONNECT_MS)
            monitored = f"inproc://links-{next(_numbers)}"
            self._sub.monitor(monitored, _LINK_EVENTS)
            self._monitor = self._new(zmq.PAIR, monitored)
            self._monitor.rcvhwm = 0
            self._monitor.connect(monitored)
            if address.bind:
                self._sub.bind(address.endpoint)
            else:
                self._sub.connect(address.endpoint)
        except _CANNOT_OPEN as error:
            self.close()
            raise CannotOpenError(str(error)) from error

    async def wait(self, timeout_s: float) -> None:
        """Wait until a socket is readable, `wake` is set, or the time has passed."""
        if timeout_s > 0 and not any(_is_readable(socket) for socket in self._open):
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        self._wake.clear()

    def live(self, limit: int) -> list[list[bytes]]:
        """The frames of each live message that has arrived, up to `limit` messages."""
        return list(_received(self._sub, limit))

    def discard(self) -> None:
        """Drop all live messages that have arrived."""
        for _ in range(2 * _LIVE_HWM // MAX_DRAINED):
            if not self.live(MAX_DRAINED):
                return

    def links(self) -> Iterator[bool]:
        """The changes of the connection, in order: True for a handshake, False for a lost connection."""
        for frames in _received(self._monitor, MAX_DRAINED):
            # zmq_socket_monitor(3): a 16-bit event, a 32-bit value.
            yield struct.unpack("=Hi", frames[0])[0] == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def connect_again(self) -> None:
        """Connect anew, where no publisher answers; an address that was bound stays bound."""
        if not self._address.bind:
            with suppress(zmq.ZMQError):
                self._sub.disconnect(self._address.endpoint)
            with suppress(zmq.ZMQError):
                self._sub.connect(self._address.endpoint)

    def ask_replay(self, start: int) -> None:
        """Ask for all batches from number `start` on, on a new socket, so that nothing of an older replay can
        come.
        """
        self.stop_replay()
        endpoint = self._address.replay_endpoint
        if endpoint is None:
            return
        try:
            self._replay = self._new(zmq.DEALER, endpoint)
            self._replay.rcvhwm = _REPLAY_HWM
            self._replay.connect(endpoint)
            self._replay.send_multipart([b"", start.to_bytes(8, "big")], zmq.NOBLOCK)
        except _CANNOT_OPEN as error:
            log.debug("cannot ask %s for a replay: %s", endpoint, error)

    def next_replayed(self) -> list[bytes] | None:
        """The frames of the replay's next message; None if none has arrived."""
        return next(_received(self._replay, 1), None) if self._replay is not None else None

    def replay_is_ready(self) -> bool:
        """Whether a message of the replay has arrived."""
        return self._replay is not None and _is_readable(self._replay)

    def stop_replay(self) -> None:
        """End the last replay: its messages are dropped."""
        if self._replay is not None:
            self._close(self._replay)
            self._replay = None

    def close(self) -> None:
        """Close all sockets at once."""
        for socket in self._open:
            if socket.type == zmq.SUB:
                # This comes before the monitor's reader is closed: an event of the connection that nobody can
                # read blocks ZeroMQ's thread for good, and then this process.
                socket.disable_monitor()
        for socket in self._open[::-1]:
            self._close(socket)

    def _new(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        self._open.append(socket)
        socket.linger = 0
        socket.maxmsgsize = MAX_PAYLOAD_BYTES  # a peer that sends more is disconnected
        if "[" in endpoint:
            socket.ipv6 = True
        asyncio.get_running_loop().add_reader(_descriptor(socket), self._wake.set)
        return socket

    def _close(self, socket: "zmq.Socket[bytes]") -> None:
        self._open.remove(socket)
        asyncio.get_running_loop().remove_reader(_descriptor(socket))
        socket.close(linger=0)


def _descriptor(socket: "zmq.Socket[bytes]") -> int:
    # It is readable when the socket has news; only the socket's `events` say whether that is a message.
    return int(socket.getsockopt(zmq.FD))


def _is_readable(socket: "zmq.Socket[bytes]") -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _received(socket: "zmq.Socket[bytes]", limit: int) -> Iterator[list[bytes]]:
    left_bytes = _MAX_DRAINED_BYTES
    for _ in range(limit):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield frames
        left_bytes -= sum(map(len, frames))
        if left_bytes <= 0:
            return
