"""The loads: a row of the table each."""

from dataclasses import dataclass
from enum import StrEnum

from proxy.tokenizing import LocalTokenizer
from scripts.workshop.bench.peers import bodies
from scripts.workshop.bench.peers.bodies import Asked, Body
from scripts.workshop.bench.peers.routers import Mode

KIB = 1 << 10
STREAM_US = 20_000
"""Between two chunks of a stream: 50 tokens a second."""


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
    asked: Asked
    at_once: int
    seconds: float = 1.2
    """For so long new requests are sent; a stream lasts as long as it lasts."""
    spread_us: int = 0
    """The first requests come within this time."""
    latency: bool = False
    """Whether what it adds to the latency is shown too."""

    @property
    def unit(self) -> Unit:
        return Unit.CHUNK if self.asked.stream else Unit.REQUEST

    @property
    def with_ids(self) -> bool:
        """Whether prompts are token ids; else they are chats."""
        return self.mode is Mode.AFFINITY

    @property
    def path(self) -> str:
        return "/v1/completions" if self.with_ids else "/v1/chat/completions"

    def bodies(self, tokenizer: LocalTokenizer | None) -> list[Body]:
        """What is sent."""
        if self.with_ids:
            return list(bodies.token_ids(self.asked))
        if self.mode is Mode.TOKENIZED and tokenizer is not None:
            return list(bodies.tokenized_chats(self.asked, tokenizer))
        return list(bodies.chats(self.asked))


def _streamed(at_once: int) -> Case:
    """Two seconds a stream, a chunk of each every 20 ms: no two of a stream can be passed on in one write."""
    asked = Asked(KIB, max_tokens=100, stream=True, interval_us=STREAM_US)
    name = f"a streamed chunk, prefill + decode, {at_once} streams"
    return Case(f"chunks-{at_once}", name, Mode.PD, asked, at_once, seconds=0.1, spread_us=STREAM_US)


def _long(key: str, name: str, mode: Mode, size: int) -> Case:
    """A conversation's next turn, one request at a time."""
    return Case(key, name, mode, Asked(size, shared=0.99, groups=4), 1)


CASES = (
    Case("unary", "unary, one leg, 1 KB, 32 at once", Mode.ONE_LEG, Asked(KIB), 32),
    Case("pd", "prefill + decode, 1 KB, 32 at once", Mode.PD, Asked(KIB), 32),
    Case("pd-32k", "prefill + decode, 32 KB, 16 at once", Mode.PD, Asked(32 * KIB), 16),
    Case("pd-512k", "prefill + decode, 512 KB, 8 at once", Mode.PD, Asked(512 * KIB), 8),
    Case("ids", "by cache, token ids, 1 KB, 32 at once", Mode.AFFINITY, Asked(KIB), 32),
    Case("ids-32k", "by cache, token ids, 32 KB, 16 at once", Mode.AFFINITY, Asked(32 * KIB), 16),
    Case("text", "by cache, chats tokenized by kvproxy, 1 KB, 32 at once", Mode.TOKENIZED, Asked(KIB), 32),
    Case(
        "text-32k",
        "by cache, chats tokenized by kvproxy, 32 KB, 16 at once",
        Mode.TOKENIZED,
        Asked(32 * KIB),
        16,
    ),
    _streamed(64),
    _streamed(256),
    Case("alone", "prefill + decode, 1 KB, one at a time", Mode.PD, Asked(KIB), 1, latency=True),
    _long("long-ids", "100k token ids, 99 % seen before, one at a time", Mode.AFFINITY, 600_000),
    _long("long-text", "a chat of 100k tokens, 99 % seen before, one at a time", Mode.TOKENIZED, 430_000),
)
