"""A stand-in for vLLM's event publisher: one thread with a PUB socket, a ROUTER and a bounded buffer."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

_SUBSCRIPTION_MS = 1000
END = (-1).to_bytes(8, "big", signed=True)


def free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1")


class Publisher:
    """Publishes and replays as vLLM does; each option makes it misbehave in one way seen in the field.

    It answers replays once it knows of a subscription, so that what a test publishes then is heard; vLLM may
    be earlier.

    `lose(number)`: do not send that batch live. `drop(request, number)`: leave it out of the replay (`number`
    -1 is the end marker). `parts`: frames of a replayed batch behind the client's identity.
    """

    def __init__(
        self,
        endpoint: str,
        replay: str | None = None,
        *,
        topic: str = "kv-events",
        buffer_steps: int = 10_000,
        parts: int = 4,
        lose: Callable[[int], bool] = lambda _: False,
        drop: Callable[[int, int], bool] = lambda _, __: False,
        deaf: bool = False,
        bind: bool = True,
    ) -> None:
        self.endpoint, self.replay_endpoint = endpoint, replay
        self._topic = topic.encode()
        self._parts = parts
        self._lose, self._drop, self._deaf, self._bind = lose, drop, deaf, bind
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._queue: queue.Queue[list[Any]] = queue.Queue()
        self.requests: list[int] = []
        self.published = 0
        self._asked = 0
        self._subscriptions = 0
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    def publish(self, *events: dict[str, Any]) -> None:
        self._asked += 1
        self._queue.put(list(events))

    def settle(self) -> None:
        """Until all is published: a subscriber that comes now is late."""
        deadline = time.monotonic() + 15
        while self.published < self._asked:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.XPUB) as pub, context.socket(zmq.ROUTER) as router:
            pub.linger = router.linger = 0
            pub.setsockopt(zmq.XPUB_VERBOSER, 1)
            if self._bind:
                _bind(pub, self.endpoint)
            else:
                pub.connect(self.endpoint)
            if self.replay_endpoint:
                _bind(router, self.replay_endpoint)
            self._ready.set()
            while not self._stop.is_set():
                self._note_subscriptions(pub, 0)
                if self.replay_endpoint and router.poll(0):
                    if not self._subscriptions:
                        self._note_subscriptions(pub, _SUBSCRIPTION_MS)
                    self._serve(router)
                try:
                    events = self._queue.get(timeout=0.005)
                except queue.Empty:
                    continue
                number = self.published
                payload = msgspec.msgpack.encode([time.time(), events, 0])
                if not self._lose(number):
                    pub.send_multipart((self._topic, number.to_bytes(8, "big"), payload))
                self._buffer.append((number, payload))
                self.published += 1

    def _note_subscriptions(self, pub: "zmq.Socket[bytes]", wait_ms: int) -> None:
        while pub.poll(wait_ms):
            self._subscriptions += 1 if pub.recv().startswith(b"\1") else -1
            wait_ms = 0

    def _serve(self, router: "zmq.Socket[bytes]") -> None:
        client, _, start = router.recv_multipart()
        request = len(self.requests)
        self.requests.append(int.from_bytes(start, "big"))
        if self._deaf:
            return
        kept = {4: (b"", self._topic), 3: (b"",), 2: ()}[self._parts]
        for number, payload in self._buffer:
            if number >= int.from_bytes(start, "big") and not self._drop(request, number):
                router.send_multipart((client, *kept, number.to_bytes(8, "big"), payload))
        if not self._drop(request, -1):
            router.send_multipart((client, *{4: (b"", b""), 3: (b"",), 2: ()}[self._parts], END, b""))


def _bind(socket: "zmq.Socket[bytes]", endpoint: str) -> None:
    deadline = time.monotonic() + 5
    while True:  # the address of a publisher that has just been closed is free a moment later
        try:
            socket.bind(endpoint)
        except zmq.ZMQError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
