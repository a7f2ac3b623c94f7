"""A request takes the free connection that was used last, so that those left from a burst stay idle and are
closed.

The legs' share of the descriptors bounds the number of connections: free ones are closed for new ones.
"""

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable

import aiohappyeyeballs

from proxy.descriptors import Descriptors
from proxy.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    LegBrokenError,
    LegError,
    NoSocketError,
    UnresolvedError,
)
from proxy.request.deadlines import Scope
from proxy.upstream.connection import Connection, Listener, words_of
from proxy.upstream.names import NO_ANSWER, Address, Names, ResolverError, address_info

SWEEP_S = 0.5
"""How often connections that have been free for too long are closed."""

NEXT_ADDRESS_S = 0.25
"""How long connecting to one address may take before the name's next one is tried beside it (RFC 8305,
section 5)."""

_NOTHING_LEFT_HERE = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


class _Engine:
    """The connections of one engine."""

    __slots__ = ("_heard_at", "connecting", "forgotten", "free", "in_use", "instance")

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.forgotten = False
        """Whether its instance was removed: no connection is kept for it."""
        self.free: list[Connection] = []
        self.in_use: set[Connection] = set()
        self.connecting: set[_Connecting] = set()
        self._heard_at = 0.0

    @property
    def heard_at(self) -> float | None:
        """When it last sent something; None if never, or once its instance was removed."""
        latest = max([self._heard_at, *[connection.heard_at for connection in self.in_use]])
        return None if self.forgotten else latest or None

    def keep_heard(self, connection: Connection) -> None:
        """A connection is no longer in use."""
        if not self.forgotten:
            self._heard_at = max(self._heard_at, connection.heard_at)

    def forget(self) -> None:
        """Its instance was removed."""
        self._heard_at = 0.0
        self.forgotten = True


class _Connecting(Scope):
    """The time limit of one connection attempt."""

    __slots__ = ("_instance", "given_up", "resolving")

    def __init__(self, instance: str, seconds: float) -> None:
        super().__init__(seconds=seconds)
        self._instance = instance
        self.given_up: str | None = None
        self.resolving = False
        """Whether its address is being looked up: if time is up then, the resolver is to blame."""

    def late(self) -> LegError:
        if self.given_up is not None:
            return LegBrokenError(self._instance, self.given_up)
        if self.resolving:
            return UnresolvedError(self._instance, f"its address is not known: {NO_ANSWER}")
        return ConnectTimeoutError(self._instance, f"no connection within {self._seconds:g} s")


class Pool(Listener):
    """The connections to all engines. MUST be closed."""

    def __init__(
        self,
        names: Names,
        tls: ssl.SSLContext,
        *,
        connect_timeout_s: float,
        keepalive_s: float,
        descriptors: Descriptors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`keepalive_s`: how long a free connection is kept; `descriptors`: bounds the number of connections
        (None: unbounded); `clock`: any monotonic seconds.
        """
        self._names = names
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s = keepalive_s
        self._clock = clock
        self._engines: dict[str, _Engine] = {}
        self._https: set[str] = set()
        """The instances that are connected to with TLS. They stay here when they are removed, so that no late
        leg is sent without TLS."""
        self._open: set[Connection] = set()
        self._connecting = 0
        self._elsewhere = 0
        """How many connections to engines are not the pool's: WebSockets."""
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self._descriptors = descriptors
        if descriptors is not None:
            descriptors.count_legs = self._count

    def speak(self, instance: str, *, https: bool) -> None:
        """Connect to an instance with TLS, or without, from now on; free connections of the other kind are
        closed.
        """
        engine = self._engine(instance)
        engine.forgotten = False
        (self._https.add if https else self._https.discard)(instance)
        for connection in tuple(engine.free):
            if connection.https is not https:
                connection.drop()

    def is_https(self, instance: str) -> bool:
        """Whether an instance is connected to with TLS."""
        return instance in self._https

    def takes_place(self, instance: str) -> None:
        """A connection of somebody else's to an engine begins, until `gives_place`. Raises NoSocketError if
        there are no descriptors left.
        """
        self._check_room(instance)
        self._elsewhere += 1

    def gives_place(self) -> None:
        """It is over."""
        self._elsewhere -= 1

    def heard_at(self, instance: str) -> float | None:
        """When an engine last sent something, in seconds of the clock; None if never."""
        engine = self._engines.get(instance)
        return engine.heard_at if engine is not None else None

    def give_up(self, instance: str, why: str) -> None:
        """Break all requests that wait for an engine, with the words `why`; close its free connections."""
        engine = self._engines.get(instance)
        if engine is None:
            return
        for waiting in tuple(engine.connecting):
            waiting.given_up = why
            waiting.end()
        for connection in tuple(engine.in_use):
            if connection.is_waited_for:
                connection.give_up(why)
        self._close_free(engine)

    def forget(self, instance: str) -> None:
        """An instance was removed: close its free connections. Requests that wait for it go on waiting."""
        engine = self._engines.get(instance)
        if engine is not None:
            self._close_free(engine)
            engine.forget()
            self._clear(engine)

    def free(self, instance: str) -> Connection | None:
        """A free connection on which to send one request; it MUST be given to `release` afterwards. None if
        there is none.
        """
        engine = self._engines.get(instance)
        while engine is not None and engine.free:
            connection = engine.free.pop()
            if connection.is_open and self._clock() - connection.heard_at < self._keepalive_s:
                connection.begin()
                engine.in_use.add(connection)
                return connection
            connection.drop()
        return None

    async def fresh(self, instance: str) -> Connection:
        """As `free`, but a new connection.

        Raises ConnectFailedError, or LegBrokenError if the engine is given up meanwhile.
        """
        return await self._connected(self._engine(instance))

    def release(self, connection: Connection) -> None:
        """The request is over: keep its connection if another request may be sent on it, else close it."""
        engine = self._engines.get(connection.instance)
        if engine is None or connection not in engine.in_use:
            connection.drop()
            return
        engine.in_use.discard(connection)
        engine.keep_heard(connection)
        connection.in_use = False
        fits = connection.https is (connection.instance in self._https) and not engine.forgotten
        late = self._clock() - connection.heard_at >= self._keepalive_s  # if the client read slowly
        if self._closed or late or not (fits and connection.is_reusable):
            connection.drop()
            self._clear(engine)
            return
        connection.used = True
        engine.free.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(
                min(SWEEP_S, self._keepalive_s), self._close_idle
            )

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in tuple(self._open):
            connection.drop()
        await asyncio.sleep(0)  # their sockets are closed in the next turn of the loop

    # What connections tell.

    def closing(self, connection: Connection) -> None:
        self._leaves(connection)
        if self._descriptors is not None:
            self._descriptors.closes(connection)

    def closed(self, connection: Connection) -> None:
        self._leaves(connection)
        if self._descriptors is not None:
            self._descriptors.has_closed(connection)

    def _leaves(self, connection: Connection) -> None:
        self._open.discard(connection)
        engine = self._engines.get(connection.instance)
        if engine is not None and connection in engine.free:
            engine.free.remove(connection)

    def _engine(self, instance: str) -> _Engine:
        engine = self._engines.get(instance)
        if engine is None:
            engine = self._engines[instance] = _Engine(instance)
        return engine

    def _clear(self, engine: _Engine) -> None:
        """Forget an engine that was removed once it has no connections."""
        if engine.forgotten and not (engine.in_use or engine.connecting or engine.free):
            self._engines.pop(engine.instance, None)

    def _count(self) -> int:
        return len(self._open) + self._connecting + self._elsewhere

    def _check_room(self, instance: str) -> None:
        descriptors = self._descriptors
        if descriptors is not None and not (
            descriptors.leg_fits() or (self._close_one_free() and descriptors.leg_fits())
        ):
            raise NoSocketError(instance, os.strerror(errno.EMFILE))

    async def _connected(self, engine: _Engine) -> Connection:
        instance = engine.instance
        self._connecting += 1
        scope = _Connecting(instance, self._connect_timeout_s)
        engine.connecting.add(scope)
        try:
            self._check_room(instance)
            with scope:
                connection = await self._connect(engine, scope)
        except ResolverError as error:
            raise UnresolvedError(instance, f"its address is not known: {error}") from error
        except socket.gaierror as error:
            self._names.doubt(_host_of(instance))
            raise ConnectFailedError(instance, "its name has no address") from error
        except ConnectTimeoutError:
            self._names.doubt(_host_of(instance))
            raise
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError where it finds a socket closed
            number = error.errno if isinstance(error, OSError) else None
            if number in _NOTHING_LEFT_HERE:
                raise NoSocketError(instance, words_of(error)) from error
            self._names.doubt(_host_of(instance))
            words = words_of(error) if number is not None else "no connection came about"
            raise ConnectFailedError(instance, words) from error
        finally:
            self._connecting -= 1
            engine.connecting.discard(scope)
            self._clear(engine)
        if connection.is_open:
            self._open.add(connection)
        self._engines.setdefault(instance, engine).in_use.add(connection)
        return connection

    async def _connect(self, engine: _Engine, scope: _Connecting) -> Connection:
        host, port = _host_of(engine.instance), int(engine.instance.rpartition(":")[2])
        scope.resolving = True
        addresses = _literal(host, port) or await self._names.resolve(host, port)
        scope.resolving = False
        loop = asyncio.get_running_loop()
        connected = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, loop=loop
        )
        https = engine.instance in self._https
        made: Connection | None = None

        def make() -> Connection:
            nonlocal made
            made = Connection(engine.instance, self, https=https, clock=self._clock)
            return made

        try:
            _, connection = await loop.create_connection(
                make,
                sock=connected,
                ssl=self._tls if https else None,
                server_hostname=host.rstrip(".") if https else None,
            )
        except BaseException:
            if made is None:
                connected.close()  # else the transport has it
            else:
                made.drop()
                self.closed(made)  # uvloop reports no close if connecting and cancelling fall into one turn
            raise
        return connection

    def _close_free(self, engine: _Engine) -> None:
        for connection in tuple(engine.free):
            connection.drop()

    def _close_one_free(self) -> bool:
        """Close the connection that has been free for the longest; False if none is."""
        free = [engine.free[0] for engine in self._engines.values() if engine.free]
        if free:
            min(free, key=lambda connection: connection.heard_at).drop()
        return bool(free)

    def _close_idle(self) -> None:
        self._sweep = None
        until = self._clock() - self._keepalive_s
        some = False
        for engine in self._engines.values():
            for connection in tuple(engine.free):
                if connection.heard_at > until:
                    some = True
                else:
                    connection.drop()
        if some:
            self._sweep = asyncio.get_running_loop().call_later(
                min(SWEEP_S, self._keepalive_s), self._close_idle
            )


def _host_of(instance: str) -> str:
    return instance.rpartition(":")[0].strip("[]")


def _literal(host: str, port: int) -> list[Address]:
    """The address of a host that is given by its address; empty if it is given by a name."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return []
    return [address_info(socket.AF_INET6 if version == 6 else socket.AF_INET, host, port)]
