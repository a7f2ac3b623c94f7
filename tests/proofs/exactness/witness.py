"""Hears every engine's events beside kvproxy, on a thread of its own, and keeps them with nothing lost or
judged.

An engine that was started again may speak before we have found it: what is missing is asked for.
"""

import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import zmq

from kvevents import Message, decode, read_live, read_replay
from scripts.workshop.engines.engine import HOST, EngineSpec
from tests.proofs.exactness.history import CacheHistory

_POLL_MS = 100
_REPLAY_MS = 2000
"""A replay is over when nothing came for so long."""


class Witness:
    """The histories of several engines by address; a context manager that listens."""

    def __init__(self, specs: Iterable[EngineSpec]) -> None:
        self._specs = list(specs)
        self._histories = {spec.address: CacheHistory() for spec in self._specs}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="witness")
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def __getitem__(self, address: str) -> CacheHistory:
        """Read it while engines are at rest."""
        return self._histories[address]

    def killed(self, address: str, at: float) -> None:
        """The process at this address is gone."""
        with self._lock:
            self._histories[address].new_process(at)

    @property
    def error(self) -> BaseException | None:
        """Why it does not listen any more."""
        return self._error

    def _listen(self) -> None:
        context = zmq.Context()
        poller = zmq.Poller()
        of_socket = {}
        try:
            for spec in self._specs:
                socket = context.socket(zmq.SUB)
                socket.setsockopt(zmq.RCVHWM, 0)
                socket.setsockopt(zmq.LINGER, 0)
                socket.setsockopt(zmq.SUBSCRIBE, b"")
                socket.connect(f"tcp://{HOST}:{spec.events_port}")
                poller.register(socket, zmq.POLLIN)
                of_socket[socket] = spec
            while not self._over.is_set():
                for socket, _ in poller.poll(_POLL_MS):
                    self._hear(socket, of_socket[socket], context)
        except (zmq.ZMQError, ValueError) as error:
            self._error = error
        finally:
            context.destroy(linger=0)

    def _hear(
        self, socket: "zmq.Socket[bytes]", spec: EngineSpec, context: "zmq.Context[zmq.Socket[bytes]]"
    ) -> None:
        message, history = read_live(socket.recv_multipart()), self._histories[spec.address]
        with self._lock:
            for missed in _replayed(context, spec, history.published, message.number):
                history.add(missed.number, decode(missed.payload).batch)
            history.add(message.number, decode(message.payload).batch)


def _replayed(
    context: "zmq.Context[zmq.Socket[bytes]]", spec: EngineSpec, start: int, end: int
) -> Iterator[Message]:
    """The batches from one number to before another, as far as the engine still has them."""
    if start >= end:
        return
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"tcp://{HOST}:{spec.replay_port}")
        socket.send_multipart([b"", start.to_bytes(8, "big")])
        while socket.poll(_REPLAY_MS) and (message := read_replay(socket.recv_multipart())) is not None:
            if message.number < end:
                yield message
