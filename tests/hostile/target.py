"""A watched kvproxy in front of stand-in engines, and what an attack did to it: its worst pause and its peak
of memory."""

import asyncio
import contextlib
import itertools
import json
import os
import pathlib
import re
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.simulation.api.model_files import write_model
from scripts.workshop.live import watched
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import OwnedProcess
from scripts.workshop.live.proxy import ProxyProcess
from tests.hostile import stand_in

HOST = "127.0.0.1"
MODEL = "tiny"
ADMIN_KEY = "bench"
AS_OPERATOR = f"X-API-Key: {ADMIN_KEY}\r\n"
"""A line of the head of what only operators may ask."""
CONTEXT_TOKENS = 131072
SETTLED_S = 1.0
"""After an attack is answered, what it left behind may go on: so long nothing new must show before it is
over."""

_STAND_IN = [
    sys.executable,
    stand_in.__file__,
    "--host",
    HOST,
    "--model",
    MODEL,
    "--side-port",
    "0",
    "--images",
]
_WRITE_BYTES = 1 << 20
_POLL_S, _POLLS = 0.1, 200


@dataclass(frozen=True, slots=True)
class Said:
    """What kvproxy answered; status 0: it ended the connection."""

    status: int
    body: bytes
    sent_bytes: int
    """By clients, and by an engine that attacks."""
    requests: int = 1
    """Begun, whether answered or not."""
    connections: int = 1

    def __str__(self) -> str:
        return str(self.status) if self.status else "no answer"


class Target:
    """The kvproxy that is attacked."""

    def __init__(
        self, proxy: ProxyProcess, pulse: pathlib.Path, logs: pathlib.Path, fleet: dict[str, list[str]]
    ) -> None:
        self._proxy = proxy
        self._fleet = fleet
        self._pulse = pulse
        self.logs = logs
        self.url = proxy.url
        self.port = int(proxy.url.rpartition(":")[2])
        self._numbers = itertools.count(1)

    def fresh(self) -> int:
        """A number that no body had yet: what is made of another is not known for it."""
        return next(self._numbers)

    async def admin(self, path: str, asked: dict[str, str]) -> Said:
        """Ask as an operator, so that an attack can begin. Raises RuntimeError if it cannot."""
        said = await self.post(path, [json.dumps(asked).encode()], head=AS_OPERATOR)
        if said.status != 200:
            raise RuntimeError(f"{path} answered {said}: {said.body[:300]!r}")
        return said

    async def drain(self, role: str) -> None:
        """Give the stand-ins of a role no more legs."""
        for instance in self._fleet[role]:
            await self.admin("/instances/drain", {"instance": instance})

    async def post(self, path: str, parts: Iterable[bytes], timeout_s: float = 60.0, head: str = "") -> Said:
        """Send a JSON body, given in parts, and read the answer; `head`: more lines of the head."""
        body = list(parts)
        size_bytes = sum(map(len, body))
        head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n{head}"
        head += f"Content-Length: {size_bytes}\r\nConnection: close\r\n\r\n"
        return await self.send([head.encode(), *body], timeout_s, size_bytes)

    async def send(self, parts: Iterable[bytes], timeout_s: float = 60.0, size_bytes: int = 0) -> Said:
        """Send bytes as they are and read until the end of the connection, or until time is up."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        answer = b""
        try:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as both:
                    sending = both.create_task(self._write(writer, parts), name="write")
                    answer = await reader.read()
                    sending.cancel()
        except* OSError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1.1 (\d{3}) ", head)
        return Said(int(found[1]) if found else 0, body, size_bytes)

    async def _write(self, writer: asyncio.StreamWriter, parts: Iterable[bytes]) -> None:
        with contextlib.suppress(OSError):  # refused before all was sent
            for part in parts:
                for start in range(0, len(part), _WRITE_BYTES):
                    writer.write(part[start : start + _WRITE_BYTES])
                    await writer.drain()

    def wait_for_tokenizer(self) -> None:
        """Wait until kvproxy tokenizes texts and chats by itself. Raises RuntimeError if it never does."""
        for _ in range(_POLLS):
            with urllib.request.urlopen(f"{self.url}/status", timeout=5) as answer:  # http on loopback
                told = json.load(answer)["tokenizer"]
            if told["path"] == "local" and not {"completion", "chat"} & told["off"].keys():
                return
            time.sleep(_POLL_S)
        raise RuntimeError("kvproxy does not tokenize by itself")

    @property
    def alive(self) -> bool:
        return self._proxy.exit_code is None

    @property
    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(pathlib.Path(f"/proc/{self._proxy.pid}/fd").iterdir()))

    def memory_mib(self, which: str) -> float:
        """`VmRSS`, what it holds now, or `VmHWM`, the most it held since `forget`."""
        status = pathlib.Path(f"/proc/{self._proxy.pid}/status").read_text(encoding="ascii", errors="replace")
        found = re.search(rf"^{which}:\s+(\d+)", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else float("inf")

    def forget(self) -> None:
        """Count peaks and pauses from here."""
        pathlib.Path(f"/proc/{self._proxy.pid}/clear_refs").write_text(
            "5", encoding="ascii"
        )  # proc(5): the peak
        watched.forget(self._pulse)

    def worst_pause_ms(self) -> float:
        return 1000 * watched.worst_pause_s(self._pulse)


@contextlib.contextmanager
def engines(logs: pathlib.Path) -> Iterator[dict[str, list[str]]]:
    """A prefill and a decode stand-in by role, for all attacks."""
    model = logs / "model"
    model.mkdir(parents=True, exist_ok=True)
    stand_in.reserve_names()
    write_model(model)  # so that kvproxy tokenizes by itself
    with contextlib.ExitStack() as stack:
        found = {}
        for name in ("prefill", "decode"):
            [port] = free_ports(1)
            words = [*_STAND_IN, "--port", str(port), "--max-model-len", str(CONTEXT_TOKENS)]
            words += ["--blocks", str(CONTEXT_TOKENS // 16 + 2), "--root", str(model)]
            stack.callback(OwnedProcess(name, words, logs / f"{name}.log", os.environ).stop)
            found[name] = [f"{HOST}:{port}"]
        yield found


class WatchedProxy(ProxyProcess):
    """`kvproxy serve` with a pulse, whose requests have two legs where there are engines for both."""

    def __init__(
        self, fleet: dict[str, list[str]], logs: pathlib.Path, name: str, flags: Sequence[str]
    ) -> None:
        self.pulse = logs / f"{name}.pulse"
        [port] = free_ports(1)
        super().__init__(
            port,
            logs / f"{name}.log",
            prefill=fleet.get("prefill", ()),
            decode=fleet.get("decode", ()),
            both=fleet.get("both", ()),
            model=MODEL,
            flags=["--log-level", "warning", "--bypass", "off", *flags],
            admin_key=ADMIN_KEY,
            program=watched.command(self.pulse),
        )


def _ordinary() -> Iterator[tuple[str, dict[str, Any]]]:
    """One request of each kind, after which nothing is done for the first time."""
    document = " ".join(f"word{number}" for number in range(12_000))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBO" * 100_000}}
    for content in ("Hi", document, [image, {"type": "text", "text": "What is it?"}]):
        yield "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}
    for prompt in ("Hello", document, ["Hello", "you"], [17] * 20_000):
        yield "/v1/completions", {"prompt": prompt}
    yield "/v1/completions", {"prompt": "Hello", "stream": True}


@contextlib.asynccontextmanager
async def target(
    fleet: dict[str, list[str]], logs: pathlib.Path, name: str, flags: Sequence[str] = ()
) -> AsyncIterator[Target]:
    """A fresh kvproxy that is ready and has done what it does once."""
    with WatchedProxy(fleet, logs, name, flags) as proxy:
        proxy.wait_status("/ready")
        found = Target(proxy, proxy.pulse, logs, fleet)
        await asyncio.to_thread(found.wait_for_tokenizer)
        for path, members in _ordinary():
            body = json.dumps({"max_tokens": 1} | members).encode()
            if (said := await found.post(path, [body])).status != 200:
                raise RuntimeError(f"{path} answered {said} before anything began: {said.body[:300]!r}")
        await asyncio.sleep(SETTLED_S)
        yield found
