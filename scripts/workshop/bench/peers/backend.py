"""The backend's own counters tell whether a load went as it should: through both legs, the KV handed over."""

import itertools
import json
import pathlib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from proxy.tokenizing import LocalTokenizer
from proxy.tokenizing.comparison import bodies
from scripts.workshop.bench.peers.routers import MODEL, Engines
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import OwnedProcess
from scripts.workshop.live.proxy import HOST

EACH = 2
"""Prefill engines, and decode engines."""


class Legs(NamedTuple):
    """Served so far, warming up and checks of readiness included."""

    prefill: int
    decode: int
    handed: int
    """Decode legs that came with a prefill engine's parameters."""

    def since(self, earlier: "Legs") -> "Legs":
        return Legs(*(now - before for now, before in zip(self, earlier, strict=True)))


class Backend:
    """All engines, in one process."""

    def __init__(self, engines: Engines, process: OwnedProcess) -> None:
        self.engines = engines
        self.process = process

    def legs(self) -> Legs:
        """Read its counters."""
        url = f"http://{HOST}:{self.engines.decode[0]}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:  # http on loopback
            lines = answer.read().decode().splitlines()
        told = dict(line.rsplit(" ", 1) for line in lines if line.startswith("fake_"))
        return Legs(*(int(told[f"fake_{name}"]) for name in Legs._fields))


@contextmanager
def started(
    program: pathlib.Path, folder: pathlib.Path, tokenizer: LocalTokenizer | None = None
) -> Iterator[Backend]:
    """A backend, ended afterwards. With a tokenizer its engines give the answers by which kvproxy finds that
    it tokenizes as they do; to any other question about tokens they answer as engines without `/tokenize`.
    """
    ports = free_ports(2 * EACH)
    publishers = free_ports(2 * len(ports))
    engines = Engines(
        prefill=ports[:EACH],
        decode=ports[EACH:],
        publishers=dict(zip(ports, zip(publishers[::2], publishers[1::2], strict=True), strict=True)),
    )
    command = [str(program), "-m", MODEL]
    for flag, role in (("-P", engines.prefill), ("-l", engines.decode)):
        command += [word for port in role for word in (flag, str(port))]
    if tokenizer is not None:
        answers_file = folder / "tokenize.answers"
        answers_file.write_bytes(b"".join(_answers(tokenizer)))
        command += ["-T", str(answers_file)]
    process = OwnedProcess("backend", command, folder / "backend.log", {})
    try:
        yield Backend(engines, process)
    finally:
        process.stop()


def _answers(tokenizer: LocalTokenizer) -> Iterator[bytes]:
    """As c/fakevllm.c reads them."""
    for question in itertools.chain(*bodies(tokenizer.pieces.cuts.tokens, MODEL).values()):
        found = tokenizer.answer_now(question)
        answer = b"" if found is None else json.dumps({"tokens": found.tolist()}).encode()
        yield b"%d %d\n%b%b" % (len(question), len(answer), question, answer)


def answers(port: int) -> bool:
    """Whether a chat sent to this port is answered."""
    chat = {"model": MODEL, "stream": False, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(  # http on loopback
        f"http://{HOST}:{port}/v1/chat/completions",
        json.dumps(chat).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False
