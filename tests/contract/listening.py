"""An engine's KV events, as a subscriber and as a replay client get them: frames, numbers and plain maps."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from scripts.workshop.engines.engine import BLOCK_TOKENS, HOST, EngineSpec
from scripts.workshop.live.waiting import wait_until
from tests.contract.asking import Engine
from tests.contract.prompts import ids

END = b"\xff" * 8
HEARD_S = 10
Event = dict[str, Any]


def decoded(payload: bytes) -> list[Any]:
    """The events of a batch."""
    events: list[Any] = msgspec.msgpack.decode(payload)[1]
    return events


class Journal:
    """What an engine publishes from a moment on. It is read by replays, so that nothing can be missed."""

    def __init__(self, context: zmq.asyncio.Context, spec: EngineSpec) -> None:
        self._context = context
        self._spec = spec
        self.next = 0

    async def replay(self, request: Sequence[bytes]) -> list[list[bytes]]:
        """Send a replay request; every message of the answer, its end included."""
        with self._context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RCVHWM, 0)
            socket.connect(f"tcp://{HOST}:{self._spec.replay_port}")
            await socket.send_multipart(list(request))
            messages: list[list[bytes]] = []
            while not messages or messages[-1][2] != END:
                assert await socket.poll(HEARD_S * 1000), "the replay did not end"
                messages.append(await socket.recv_multipart())
            return messages

    async def since(self, start: int) -> list[tuple[int, bytes]]:
        """Numbers and payloads of the batches from a number on."""
        messages = await self.replay([b"", start.to_bytes(8, "big")])
        return [(int.from_bytes(number, "big"), payload) for _, _, number, payload in messages[:-1]]

    async def mark(self) -> None:
        """From here on."""
        batches = await self.since(0)
        self.next = batches[-1][0] + 1 if batches else 0

    async def empty_cache(self, engine: Engine) -> None:
        """Begin with a cache that is empty but for one block, and that known to all."""
        await engine.at_rest()
        status, _, answer = await engine.send("POST", "/reset_prefix_cache")
        assert (status, answer) == (200, b'{"success":true}')
        await self.mark()
        await engine.served(ids(BLOCK_TOKENS, "announces the reset"))
        await self.stored(1)
        await self.mark()

    async def events(self) -> list[Event]:
        """All events since the mark."""
        return [event for _, payload in await self.since(self.next) for event in decoded(payload)]

    async def heard(self, enough: Callable[[list[Event]], bool]) -> list[Event]:
        """The events since the mark, as soon as they are enough."""

        async def found() -> list[Event]:
            events = await self.events()
            return events if enough(events) else []

        return await wait_until(found, HEARD_S, "the events are published")

    async def stored(self, blocks: int) -> list[Event]:
        """The events since the mark, with at least that many stored blocks."""
        return await self.heard(lambda events: len(hashes(events)) >= blocks)


def hashes(events: Sequence[Event], kind: str = "BlockStored") -> list[int]:
    """The blocks of all events of a kind."""
    return [block for event in events if event["type"] == kind for block in event["block_hashes"]]


def stored_tokens(events: Sequence[Event]) -> list[int]:
    """The tokens of all blocks stored."""
    return [token for event in events if event["type"] == "BlockStored" for token in event["token_ids"]]


class Subscriber:
    """A SUB socket of one engine."""

    def __init__(self, context: zmq.asyncio.Context, spec: EngineSpec, topic: bytes = b"") -> None:
        self._socket = context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.subscribe(topic)
        self._socket.connect(f"tcp://{HOST}:{spec.events_port}")

    def close(self) -> None:
        self._socket.close()

    async def message(self, within_s: float = HEARD_S) -> list[bytes] | None:
        """The next message, None if there is none in time."""
        if await self._socket.poll(int(within_s * 1000)):
            return await self._socket.recv_multipart()
        return None

    async def connected(self, say_something: Callable[[], Any]) -> list[bytes]:
        """Make the engine publish until it is heard: the message that was."""
        end = time.monotonic() + HEARD_S
        while time.monotonic() < end:
            await say_something()
            if message := await self.message(0.2):
                return message
        raise TimeoutError("nothing was heard")
