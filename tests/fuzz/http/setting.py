"""A kvproxy process in front of stand-in engines, and what can be measured of it from outside."""

import contextlib
import json
import os
import pathlib
import re
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import OwnedProcess
from scripts.workshop.live.proxy import ProxyProcess

ADMIN_KEY = "fuzz-admin-key"
HOST = "127.0.0.1"
MODEL = "tiny"

_STAND_IN = (sys.executable, "-m", "proxy.simulation", "--host", HOST, "--model", MODEL)
_SHORT_ANSWERS = ("--max-model-len", "160", "--blocks", "2048")
"""An absent max_tokens of a chat means as many as fit; with these it costs little."""

_BAD_LOG = re.compile(
    r"Traceback|never retrieved|never awaited|Unclosed|Task exception|Unhandled|failed on this"
)


@dataclass(frozen=True, slots=True)
class Level:
    """What a process holds at one moment."""

    rss_mib: float
    fds: int
    threads: int
    cached_mib: float
    """Of the memory what bounded caches say they hold."""


def level(pid: int, cached_bytes: int) -> Level:
    """What the process holds now, from /proc."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
    fds = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  # only the number is wanted
    return Level(int(found["VmRSS"]) / 1024, fds, int(found["Threads"]), cached_bytes / (1 << 20))


class Setting:
    """What is fuzzed."""

    def __init__(
        self, proxy: ProxyProcess, engines: dict[str, OwnedProcess], spare: str, admins: dict[str, str]
    ) -> None:
        self.proxy = proxy
        self.engines = engines
        self._admins = admins
        self.spare = spare
        """The address of an engine kvproxy is not configured with."""
        self.fixed = [address for address in engines if address != spare]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.proxy.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def get(self, path: str) -> Any:
        """The JSON of a GET; raises OSError or ValueError."""
        request = urllib.request.Request(self.proxy.url + path, headers={"X-API-Key": ADMIN_KEY})
        with urllib.request.urlopen(request, timeout=30) as answer:  # http on loopback
            return json.load(answer)

    def post(self, url: str, path: str, body: Any) -> bytes:
        """The answer's body; raises OSError."""
        headers = {"Content-Type": "application/json", "X-API-Key": ADMIN_KEY}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:  # http on loopback
            found: bytes = answer.read()
            return found

    def level(self) -> Level:
        """What kvproxy holds; raises OSError or ValueError if it does not say."""
        tokenizer = self.get("/status")["tokenizer"]
        pieces = tokenizer["pieces"] or {"held_bytes": 0}
        return level(self.proxy.pid, tokenizer["answers"]["held_bytes"] + pieces["held_bytes"])

    def decode_engine(self, command: dict[str, Any]) -> None:
        """Tell it to go wrong, or right again; raises OSError."""
        self.post(self._admins[self.fixed[1]], "/faults", command)

    def died(self) -> list[str]:
        """Which processes have ended."""
        ended = [f"engine {a} ended: {e.tail()}" for a, e in self.engines.items() if e.exit_code is not None]
        if self.proxy.exit_code is not None:
            ended.append(f"kvproxy ended with {self.proxy.exit_code}: {self.proxy.tail()}")
        return ended

    def unrest(self) -> list[str]:
        """What is not as it was: instances that are down, legs in flight."""
        status = self.get("/status")
        by_address = {instance["instance"]: instance for instance in status["instances"]}
        found = [] if status["ready"] else ["kvproxy is not ready"]
        found += [f"{address} is gone" for address in self.fixed if address not in by_address]
        for address, instance in by_address.items():
            if address in self.fixed and not instance["up"]:
                found.append(f"{address} is {instance['state']} ({instance['why']})")
            found += [f"{n} {phase} legs at {address}" for phase, n in instance["in_flight"].items() if n]
        return found

    def bad_log_lines(self) -> list[str]:
        """What kvproxy's log should not hold."""
        log = self.proxy.log
        with log.open(encoding="utf-8", errors="replace") as lines:
            return [f"{log.name}: {line.rstrip()[:300]}" for line in lines if _BAD_LOG.search(line)]


@contextlib.contextmanager
def setting(logs: pathlib.Path, flags: Sequence[str] = ()) -> Iterator[Setting]:
    """A ready kvproxy in front of one prefill and one decode stand-in; a third one may be added."""
    for old in logs.glob("*.log"):
        old.unlink()
    with contextlib.ExitStack() as stack:
        engines: dict[str, OwnedProcess] = {}
        admins: dict[str, str] = {}
        ports = free_ports(13)
        for number, name in enumerate(("prefill", "decode", "spare")):
            port, events, replay, admin = ports[4 * number : 4 * number + 4]
            words = [*_STAND_IN, *_SHORT_ANSWERS, "--port", str(port)]
            words += ["--events", str(events), "--replay", str(replay), "--admin", str(admin)]
            engine = OwnedProcess(name, words, logs / f"{name}.log", os.environ)
            stack.callback(engine.stop)
            engines[f"{HOST}:{port}"] = engine
            admins[f"{HOST}:{port}"] = f"http://{HOST}:{admin}"
        prefill, decode, spare = engines
        proxy = stack.enter_context(
            ProxyProcess(
                ports[12],
                logs / "kvproxy.log",
                prefill=[prefill],
                decode=[decode],
                model=MODEL,
                flags=flags,
                admin_key=ADMIN_KEY,
            )
        )
        proxy.wait_status("/ready")
        yield Setting(proxy, engines, spare, admins)
