"""A kvproxy of our own, started with its real command line, as a user starts it."""

import os
import pathlib
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Self

from scripts.workshop.live.processes import OwnedProcess

KVPROXY = pathlib.Path(sys.executable).with_name("kvproxy")
HOST = "127.0.0.1"
_POLL_S = 0.2


class ProxyFailedError(RuntimeError):
    """kvproxy ended or did not get ready; the message names its log and shows the log's last lines."""


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
        program: Sequence[str] = (),
    ) -> None:
        """`program`: what is started instead of the `kvproxy` command, with its arguments."""
        self.url = f"http://{HOST}:{port}"
        self.log = log
        self.admin_key = admin_key
        self.command = [
            *(program or [str(KVPROXY)]),
            "serve",
            "--host",
            HOST,
            "--port",
            str(port),
            "--model",
            model,
        ]
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
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.exit_code

    def terminate(self) -> None:
        """Ask it to end, and do not wait."""
        self._process.send(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and return the exit code; subprocess.TimeoutExpired if it does not come."""
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()

    def tail(self, lines: int = 15) -> str:
        return self._process.tail(lines)

    def wait_status(self, path: str, status: int = 200, timeout_s: float = 60) -> None:
        """Wait until a GET of `path` answers `status`; ProxyFailedError if it ends or does not."""
        end = time.monotonic() + timeout_s
        while (found := self._get(path)) != status:
            if self.exit_code is not None:
                raise self._failure(f"ended with exit code {self.exit_code}")
            if time.monotonic() > end:
                raise self._failure(f"answered {path} with {found}, not {status}, for {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def _get(self, path: str) -> int | None:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:  # noqa: S310  # http on loopback
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return None

    def _failure(self, what: str) -> ProxyFailedError:
        return ProxyFailedError(f"kvproxy {what}; its log is {self.log}:\n{self.tail()}")
