"""Live messages wait for the end of a replay, in order and bounded: when there is no room for one, all others
are dropped.
"""

from collections import deque

from kvevents.decoder import Message

MAX_WAITING_BYTES = 64 << 20
"""Bytes of live messages that are kept while a replay runs; beyond that all are dropped and asked for
again."""

MAX_WAITING = 10_000
"""Live messages that are kept while a replay runs: as many as vLLM's replay buffer holds
(KVEventsConfig.buffer_steps)."""


class Waiting:
    """Live messages in the order in which they are to be applied."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of all messages together; besides, at most MAX_WAITING messages are kept."""
        self._max_bytes = max_bytes
        self._messages: deque[Message] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: Message, *, first: bool) -> bool:
        """Keep a message. Returns False if there was no room: then it is the only one that is kept."""
        size = _size(message)
        fits = self._bytes + size <= self._max_bytes and len(self._messages) < MAX_WAITING
        if not fits:
            self.clear()
        self._bytes += size
        if first:
            self._messages.appendleft(message)
        else:
            self._messages.append(message)
        return fits

    def take(self) -> Message:
        """Take the next message out; there MUST be one."""
        message = self._messages.popleft()
        self._bytes -= _size(message)
        return message

    def clear(self) -> None:
        """Drop all messages."""
        self._messages.clear()
        self._bytes = 0


def _size(message: Message) -> int:
    return len(message.topic) + len(message.payload)
