"""The loads: a row of the table each."""

from dataclasses import dataclass
from enum import StrEnum

from scripts.workshop.bench.peers import bodies
from scripts.workshop.bench.peers.bodies import Asked, Body
from scripts.workshop.bench.peers.routers import Mode

UNARY = Asked()
CHAT = "/v1/chat/completions"


class Unit(StrEnum):
    """What CPU time is divided by."""

    REQUEST = "request"
    CHUNK = "chunk"


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load."""

    key: str
    """For `--only`."""
    name: str
    mode: Mode
    size: int
    """Of a body, in bytes."""
    at_once: int
    seconds: float = 1.2
    asked: Asked = UNARY
    latency: bool = False
    """Whether what it adds to the latency is shown too."""

    @property
    def unit(self) -> Unit:
        return Unit.CHUNK if self.asked.stream else Unit.REQUEST

    @property
    def path(self) -> str:
        return CHAT

    def bodies(self) -> list[Body]:
        """What is sent."""
        return bodies.chats(self.size, self.asked)


def _streamed(at_once: int) -> Case:
    """Two seconds a stream: nothing can be gathered into fewer writes, as each has a chunk every 20 ms."""
    return Case(
        f"chunks-{at_once}",
        f"a streamed chunk, prefill + decode, {at_once} streams",
        Mode.PD,
        1 << 10,
        at_once,
        0.1,
        Asked(max_tokens=100, stream=True, interval_us=20_000),
    )


CASES = (
    Case("unary", "unary, one leg, 1 KB, 32 at once", Mode.ONE_LEG, 1 << 10, 32),
    Case("pd", "prefill + decode, 1 KB, 32 at once", Mode.PD, 1 << 10, 32),
    Case("pd-32k", "prefill + decode, 32 KB, 16 at once", Mode.PD, 32 << 10, 16),
    Case("pd-512k", "prefill + decode, 512 KB, 8 at once", Mode.PD, 512 << 10, 8),
    _streamed(64),
    _streamed(256),
    Case("alone", "prefill + decode, 1 KB, one at a time", Mode.PD, 1 << 10, 1, latency=True),
)
