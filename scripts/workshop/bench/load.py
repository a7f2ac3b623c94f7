"""A load generator that costs little itself: prebuilt requests over kept connections, answers read to their
end.
"""

import asyncio
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

_HEAD_END = b"\r\n\r\n"
_CHUNKS_END = b"0\r\n\r\n"
_LIMIT = 1 << 24


@dataclass(slots=True)
class Outcome:
    """What one run measured."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    chunks: int = 0
    """Streamed events that arrived."""
    failures: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.latencies_s)

    def percentile_ms(self, share: float) -> float:
        """The latency that `share` of the requests stayed below, in milliseconds."""
        if len(self.latencies_s) < 2:
            return 1000 * (self.latencies_s[0] if self.latencies_s else 0.0)
        cuts = statistics.quantiles(self.latencies_s, n=100, method="inclusive")
        return 1000 * cuts[min(98, max(0, round(share * 100) - 1))]


def post(path: str, body: bytes) -> bytes:
    """An HTTP/1.1 request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: "
        f"{len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(address: str, requests: Iterable[bytes], concurrency: int) -> Outcome:
    """Send all `requests` over `concurrency` connections, each the next one when its last is answered."""
    outcome = Outcome()
    waiting = iter(requests)
    host, _, port = address.rpartition(":")

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=_LIMIT)
        try:
            for request in waiting:
                begun = time.perf_counter()
                writer.write(request)
                answer = await read_answer(reader)
                outcome.latencies_s.append(time.perf_counter() - begun)
                outcome.chunks += answer.chunks
                if answer.failure is not None:
                    outcome.failures.append(answer.failure)
        finally:
            writer.close()
            await writer.wait_closed()

    begun = time.perf_counter()
    await asyncio.gather(*[worker() for _ in range(concurrency)])
    outcome.seconds = time.perf_counter() - begun
    return outcome


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer that was read to its end."""

    head_at: float
    """When its head had come, of `time.perf_counter`."""
    chunks: int
    """Streamed events."""
    failure: str | None
    """What is wrong with it, if anything is."""


async def read_answer(reader: asyncio.StreamReader) -> Answered:
    """Read one answer. OSError or EOFError if it is cut."""
    head = (await reader.readuntil(_HEAD_END)).lower()
    head_at = time.perf_counter()
    status = head.split(b" ", 2)[1]
    chunks = 0
    if b"transfer-encoding: chunked" in head:
        body = await reader.readuntil(_CHUNKS_END)
        while not body.endswith(b"\r\n" + _CHUNKS_END):
            body += await reader.readuntil(_CHUNKS_END)
        chunks = body.count(b"data: ")
        complete = b"data: [DONE]" in body
    else:
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        complete = True
    right = status == b"200" and complete
    return Answered(head_at, chunks, None if right else f"status {status.decode()}: {body[-200:]!r}")
