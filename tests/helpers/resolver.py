"""A resolver of the test's own in the place of the machine's, for names that end in `.test`."""

import socket
import threading
from typing import Any

import pytest

_ask_machine = socket.getaddrinfo


class Resolver:
    """What it says of each name: addresses, or the number of an error."""

    def __init__(self) -> None:
        self.says: dict[str, list[str] | int] = {}
        self.asked: list[str] = []
        self._speaks = threading.Event()
        self._speaks.set()

    def fall_silent(self) -> None:
        """Nobody is answered any more."""
        self._speaks.clear()

    def speak(self) -> None:
        """Everybody is answered, those who wait as well."""
        self._speaks.set()

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        """As `socket.getaddrinfo`."""
        if not str(host).endswith(".test"):
            return _ask_machine(host, port, *args, **options)
        self.asked.append(host)
        self._speaks.wait()
        said = self.says.get(host, socket.EAI_NONAME)
        if isinstance(said, int):
            raise socket.gaierror(said, "so it is")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0)) for address in said]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In force until the test ends; then nobody waits for it any more."""
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.speak()
