"""A publisher that sends nonsense live and lies when it is asked for a replay; and one that tells the truth.

Both run in threads with sockets of their own, as an engine's publisher does.
"""

import abc
import contextlib
import functools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from tests.fuzz.events.in_process import hostile_frames
from tests.fuzz.events.payloads import Payloads

Send = Callable[..., None]
"""Sends the frames it is given."""

_END = b"\xff" * 8
_BIND_S = 10.0
_LIES = (
    "truth",
    "truth",
    "silence",
    "shuffled",
    "no end",
    "nonsense",
    "other process",
    "only the end",
    "endless",
)
_ENDLESS = 2000  # batches, again and again the same


class Publisher(threading.Thread, abc.ABC):
    """Publishes and answers replays until stopped. `endpoints`: of events and of replays."""

    def __init__(self, endpoints: tuple[str, str]) -> None:
        super().__init__(name="publisher", daemon=True)
        self._endpoints = endpoints
        self._stopped = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with (
                zmq.Context() as context,
                context.socket(zmq.PUB) as pub,
                context.socket(zmq.ROUTER) as router,
            ):
                pub.linger = router.linger = 0
                pub.sndhwm = 0
                for socket, endpoint in ((pub, self._endpoints[0]), (router, self._endpoints[1])):
                    _bind(socket, endpoint)
                while not self._stopped.is_set():
                    if router.poll(1):
                        client, *asked = router.recv_multipart()
                        self.answer(
                            int.from_bytes(asked[-1], "big"), functools.partial(_send, router, client)
                        )
                    self.publish(functools.partial(_send, pub))
        except BaseException as error:  # noqa: BLE001  # told by whoever stops it
            self.failure = error

    @abc.abstractmethod
    def publish(self, send: Send) -> None:
        """Send what is due."""

    @abc.abstractmethod
    def answer(self, start: int, send: Send) -> None:
        """Answer a request for a replay."""

    def stop(self) -> None:
        """End it; raises what made it fail."""
        self._stopped.set()
        self.join(30)
        if self.failure is not None:
            raise self.failure


class Liar(Publisher):
    """Sends hostile inputs, at most some hundred ahead of those that were heard."""

    def __init__(
        self, endpoints: tuple[str, str], rng: random.Random, payloads: Payloads, inputs: int
    ) -> None:
        super().__init__(endpoints)
        self._rng = rng
        self._payloads = payloads
        self._inputs = inputs
        self._last: int | None = None
        self._kept: list[tuple[int, bytes]] = []
        self.sent = 0
        self.replayed = 0
        self.go = threading.Event()
        self.done = threading.Event()

    def publish(self, send: Send) -> None:
        if not self.go.is_set():
            return
        for _ in range(20):
            if self.sent >= self._inputs:
                self.done.set()
                return
            _, payload = self._payloads.make(self._rng)
            frames = hostile_frames(self._rng, self._last, payload)
            self._last = (-1 if self._last is None else self._last) + 1
            self._kept = [*self._kept[-30:], (self._last, payload)]
            if frames:
                send(*frames)
                self.sent += 1

    def answer(self, start: int, send: Send) -> None:
        lie = self._rng.choice(_LIES)
        told = [(number, payload) for number, payload in self._kept if number >= start]
        if lie == "shuffled":
            self._rng.shuffle(told)
        elif lie == "other process":
            told = [(number, payload + b" ") for number, payload in told]
        elif lie in {"silence", "only the end"}:
            told = []
        elif lie == "endless":
            told = (told or [(start, b"")]) * (_ENDLESS // max(1, len(told)))
        for number, payload in told:
            self.replayed += 1
            if lie == "nonsense":
                _, payload = self._payloads.make(self._rng)  # noqa: PLW2901  # another instead
                send(*hostile_frames(self._rng, number - 1, payload, replayed=True))
            else:
                send(b"", b"", (number % 2**63).to_bytes(8, "big"), payload)
        if lie not in {"silence", "no end"}:
            send(b"", b"", _END, b"")


class Truthful(Publisher):
    """Publishes what it is given, from number 0 on, and replays it."""

    def __init__(self, endpoints: tuple[str, str], before: list[bytes], live: list[bytes]) -> None:
        """`before` was published when nobody listened yet; `live` is published on `go`."""
        super().__init__(endpoints)
        self._kept = list(before)
        self._due = list(live)
        self.go = threading.Event()

    def publish(self, send: Send) -> None:
        if self.go.is_set() and self._due:
            payload = self._due.pop(0)
            send(b"kv", len(self._kept).to_bytes(8, "big"), payload)
            self._kept.append(payload)

    def answer(self, start: int, send: Send) -> None:
        for number, payload in enumerate(self._kept):
            if number >= start:
                send(b"", b"kv", number.to_bytes(8, "big"), payload)
        send(b"", b"", _END, b"")


def _send(socket: "zmq.Socket[bytes]", *frames: bytes) -> None:
    with contextlib.suppress(zmq.ZMQError):  # the asker is gone
        socket.send_multipart(frames)


def _bind(socket: "zmq.Socket[Any]", endpoint: str) -> None:
    deadline = time.monotonic() + _BIND_S
    while True:  # the address of one that has just ended is free a moment later
        try:
            socket.bind(endpoint)
        except zmq.ZMQError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
