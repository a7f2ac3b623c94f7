"""A name that was resolved once always has an address: no later connection waits for the resolver, and an
engine is not blamed for a resolver that is silent.

Addresses are looked up again in the background, while the old ones are used. Lookups run in daemon threads of
their own: a silent resolver blocks a thread for half a minute, and neither other threads nor the end of the
process should wait for it.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from proxy.tasks import TaskOwner

log = logging.getLogger(__name__)

FRESH_S = 5.0
"""The age at which an address is looked up again; it is used meanwhile."""
NO_ANSWER = "kvproxy's resolver does not answer"
SILENT_S = 1.5
"""A resolver that takes longer counts as silent. It is less than the time of a check, so that the resolver is
blamed and not the engine."""
FORGOTTEN_S = 3600.0
"""A name that was not used for this long is forgotten: its engine has left."""

MAX_LOOKUPS = 16
"""How many lookups may run at once, each in a thread."""

_NO_ADDRESS = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY})

_Key = tuple[str, int]
_Addresses = list[tuple[socket.AddressFamily, str]]
"""Family and address of each."""

Address = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
"""An address of a name, in the form of `socket.getaddrinfo`."""


def address_info(family: int, host: str, port: int) -> Address:
    """The `Address` of a literal address (`host`) and a port."""
    where = (host, port, 0, 0) if family == socket.AF_INET6 else (host, port)
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)


class ResolverError(OSError):
    """The resolver did not answer, or answered that it failed; that says nothing of the host."""


class _Known:
    """The known addresses of a name."""

    def __init__(self, addresses: _Addresses, now: float) -> None:
        self.addresses = addresses
        self.asked_at = now
        self.used_at = now
        self.turn = 0


class _Lookup(NamedTuple):
    """One lookup that runs."""

    task: "asyncio.Task[OSError | None]"
    begun_at: float


class Names:
    """Resolves the names of engines. MUST be closed."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        fresh_s: float = FRESH_S,
        silent_s: float = SILENT_S,
    ) -> None:
        self._clock = clock
        self._fresh_s = fresh_s
        self._silent_s = silent_s
        self._known: dict[_Key, _Known] = {}
        self._asking: dict[_Key, _Lookup] = {}
        self._tasks = TaskOwner("names")
        self._places = asyncio.Semaphore(MAX_LOOKUPS)
        self._in_trouble = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[Address]:
        """The addresses of a name; each of them comes first in turn.

        Raises ResolverError, or socket.gaierror if the name has no address: both only if none was ever known.
        """
        key = (host, int(family))
        known = self._known.get(key)
        if known is None:
            known = await self._first(key)
        elif self._clock() - known.asked_at >= self._fresh_s:
            self._ask(key)
        known.used_at = self._clock()
        known.turn = (known.turn + 1) % len(known.addresses)
        in_turn = known.addresses[known.turn :] + known.addresses[: known.turn]
        return [address_info(kind, address, port) for kind, address in in_turn]

    def doubt(self, host: str) -> None:
        """No connection came about at its addresses: look them up, since they may have changed."""
        for key in self._known:
            if key[0] == host:
                self._ask(key)

    async def close(self) -> None:
        """End all lookups."""
        await self._tasks.close()

    async def _first(self, key: _Key) -> _Known:
        lookup = self._ask(key)
        try:
            async with asyncio.timeout(max(0.0, lookup.begun_at + self._silent_s - self._clock())):
                error = await asyncio.shield(lookup.task)
        except TimeoutError:
            raise ResolverError(NO_ANSWER) from None
        if error is not None:
            raise type(error)(*error.args)  # a new one: several may wait for this lookup
        return self._known[key]

    def _ask(self, key: _Key) -> _Lookup:
        """The lookup of a name: the one that runs, or else a new one."""
        if (lookup := self._asking.get(key)) is None:
            now = self._clock()
            if (known := self._known.get(key)) is not None:
                known.asked_at = now
            task = self._tasks.create(self._look_up(key), name=f"address of {key[0]}")
            lookup = self._asking[key] = _Lookup(task, now)
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return lookup

    async def _look_up(self, key: _Key) -> OSError | None:
        """Look a name up. Returns what went wrong if the name has no known address then."""
        async with self._places:
            answer = _in_thread(key)
            await asyncio.wait({answer}, timeout=self._silent_s)
            if not answer.done():
                self._trouble(key, "does not answer")
            try:
                addresses = await answer
            except socket.gaierror as error:
                if has_none := error.errno in _NO_ADDRESS:
                    self._well()
                else:
                    self._trouble(key, f"says: {error.strerror}")
                if key in self._known:
                    return None  # the old addresses are better than none
                return error if has_none else ResolverError(f"kvproxy's resolver says: {error.strerror}")
        self._well()
        now = self._clock()
        for old in [k for k, known in self._known.items() if now - known.used_at > FORGOTTEN_S and k != key]:
            del self._known[old]
        known = self._known.setdefault(key, _Known(addresses, now))
        known.addresses, known.asked_at = addresses, now
        known.turn %= len(addresses)
        return None

    def _trouble(self, key: _Key, what: str) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            log.warning(
                "the resolver %s when asked for %s: engines are reached at the addresses known before",
                what,
                key[0],
            )

    def _well(self) -> None:
        if self._in_trouble:
            self._in_trouble = False
            log.info("the resolver answers again")


def _in_thread(key: _Key) -> "asyncio.Future[_Addresses]":
    """The resolver's answer, from a thread of its own, which runs on if the future is cancelled."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Addresses] = loop.create_future()

    def tell(result: _Addresses | None, error: OSError | None) -> None:
        if answer.done():
            return
        if result:
            answer.set_result(result)
        else:
            answer.set_exception(error or socket.gaierror(socket.EAI_NONAME, "no address"))

    def ask() -> None:
        result: _Addresses | None = None
        failed: OSError | None = None
        try:
            result = _addresses(*key)
        except OSError as error:
            failed = (
                error
                if isinstance(error, socket.gaierror)
                else socket.gaierror(socket.EAI_FAIL, str(error.strerror))
            )
        except UnicodeError:
            failed = socket.gaierror(socket.EAI_NONAME, "not a name")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=ask, name=f"address of {key[0]}", daemon=True).start()
    return answer


def _addresses(host: str, family: int) -> _Addresses:
    found: _Addresses = []
    infos: list[Any] = socket.getaddrinfo(
        host, None, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    for kind, _, _, _, address in infos:
        scoped = kind is socket.AF_INET6 and len(address) > 3 and address[3]
        name = (
            socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
            if scoped
            else address[0]
        )
        found.append((kind, name))
    return found
