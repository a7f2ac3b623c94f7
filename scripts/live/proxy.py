"""A kvproxy of our own, started with its real command line, as a user starts it."""

import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Self

import aiohttp

from live.processes import OwnedProcess
from live.waiting import wait_until

KVPROXY = pathlib.Path(sys.executable).with_name("kvproxy")
HOST = "127.0.0.1"


class ProxyProcess:
    """`kvproxy serve` on a loopback port; a context manager that ends it."""

    def __init__(
        self,
        port: int,
        log: pathlib.Path,
        *,
        prefill: Sequence[str] = (),
        decode: Sequence[str] = (),
        both: Sequence[str] = (),
        model: str = "tiny",
        flags: Sequence[str] = (),
        admin_key: str = "",
    ) -> None:
        self.url = f"http://{HOST}:{port}"
        self.command = [str(KVPROXY), "serve", "--host", HOST, "--port", str(port), "--model", model]
        for flag, addresses in (("--prefill", prefill), ("--decode", decode), ("--both", both)):
            if addresses:
                self.command += [flag, *addresses]
        self.command += flags
        env = dict(os.environ)
        env.pop("ADMIN_API_KEY", None)
        if admin_key:
            env["ADMIN_API_KEY"] = admin_key
        self._process = OwnedProcess("kvproxy", self.command, log, env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> pathlib.Path:
        return self._process.log

    @property
    def exit_code(self) -> int | None:
        return self._process.exit_code

    def interrupt(self) -> None:
        """Ask it to end, and do not wait."""
        self._process.send(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        self._process.stop()

    def tail(self, lines: int = 15) -> str:
        return self._process.tail(lines)

    async def wait_ready(self, session: aiohttp.ClientSession, timeout_s: float = 60) -> None:
        """Wait until /ready answers 200; RuntimeError with the log's end if it dies, TimeoutError if it does not."""

        async def ready() -> bool:
            if self.exit_code is not None:
                raise RuntimeError(
                    f"kvproxy ended with exit code {self.exit_code}; {self.log}:\n{self.tail()}"
                )
            try:
                async with session.get(f"{self.url}/ready") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await wait_until(ready, timeout_s, f"kvproxy is ready (see {self.log})")
