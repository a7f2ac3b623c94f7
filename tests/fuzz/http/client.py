"""Fires shots over raw connections; every one ends in an outcome, and what is wrong with it becomes a
finding."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

from tests.fuzz.http.answers import Answer, AnswerParser, WrongAnswerError, check
from tests.fuzz.http.shots import Ending, Shot, Shots

QUIET_S = 1.0
"""After a shot that need not be answered: silence for so long means that the server waits for more of it."""
ANSWER_S = 60.0
"""A well-framed shot that is not answered within this time is a finding, also on a machine that is busy."""
MAX_FINDINGS = 50
_SHOWN_BYTES = 400

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: no ports in TIME_WAIT after a million connections


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that may not happen."""

    number: int
    """Of the shot."""
    shot: Shot
    what: str


@dataclass(slots=True)
class Tally:
    """What has been sent, and how it ended."""

    shots: int = 0
    requests: int = 0
    connections: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind of shot: a status for every answer, or how it ended without one."""
    findings: list[Finding] = field(default_factory=list)
    found: int = 0

    def finding(self, number: int, shot: Shot, what: str) -> None:
        """Count it, and keep it if there are few."""
        self.found += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(number, shot, what))


class _Connection(asyncio.Protocol):
    """One connection; `fire` sends a shot and waits for its end."""

    def __init__(self, open_ones: "set[_Connection]") -> None:
        self._open_ones = open_ones
        self._transport: asyncio.Transport | None = None
        self._parser = AnswerParser()
        self._answers: list[Answer] = []
        self._expected: int | None = None
        self._bodiless = False
        self._done: asyncio.Future[None] | None = None
        self._wrong: WrongAnswerError | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open_ones.add(self)
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def data_received(self, data: bytes) -> None:
        if self._wrong is not None:
            return
        try:
            self._answers += self._parser.feed(data, bodiless=self._bodiless)
        except WrongAnswerError as error:
            self._wrong = error
            self._finish()
            return
        if self._expected is not None and len(self._answers) >= self._expected:
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:  # asyncio's signature
        self.closed = True
        asyncio.get_running_loop().call_soon(self._open_ones.discard, self)  # its socket is closed by then
        if self._wrong is None:
            try:
                if (cut := self._parser.end()) is not None:
                    self._answers.append(cut)
            except WrongAnswerError as wrong:
                self._wrong = wrong
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def drop(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def fire(self, shot: Shot) -> tuple[list[Answer], str]:
        """Send it; the answers, and how it ended. Raises WrongAnswerError."""
        loop = asyncio.get_running_loop()
        self._answers, self._expected, self._bodiless = [], shot.answers, shot.bodiless
        self._done = loop.create_future()
        for number, piece in enumerate(shot.pieces):
            if number:
                await asyncio.sleep(0)
            if self.closed or self._transport is None:
                break
            self._transport.write(piece)
        if shot.ending is Ending.LEAVE:
            self.drop()
            return [], "left"
        if shot.ending is Ending.HALF_CLOSE and self._transport is not None and not self.closed:
            self._transport.write_eof()
        ended = "closed"
        if not self.closed:
            ended = await self._end(shot)
        if self._wrong is not None:
            raise self._wrong
        return self._answers, ended

    async def _end(self, shot: Shot) -> str:
        assert self._done is not None  # made by fire
        while True:
            had = len(self._answers)
            wait_s = QUIET_S if shot.answers is None else ANSWER_S
            await asyncio.wait((self._done,), timeout=wait_s)
            if self._done.done():
                return "closed" if self.closed else "answered"
            if shot.answers is not None or len(self._answers) == had:
                return "silence"

    @property
    def reusable(self) -> bool:
        """Whether another shot may follow."""
        return not self.closed and self._parser.idle and not any(a.closes for a in self._answers)


class Fuzzer:
    """Takes the shots one by one, over several connections at once."""

    def __init__(self, host: str, port: int, shots: Shots, numbers: Iterator[int], tally: Tally) -> None:
        self._host, self._port = host, port
        self._shots = shots
        self._numbers = numbers
        self._tally = tally
        self._open_ones: set[_Connection] = set()

    async def run(self, connections: int, until: Callable[[Tally], bool]) -> None:
        """Fire until `until` says that it is enough."""
        async with asyncio.TaskGroup() as group:
            for number in range(connections):
                group.create_task(self._work(until), name=f"fuzz {number}")
        while self._open_ones:  # noqa: ASYNC110  # dropped, and closed within a turn or two of the event loop
            await asyncio.sleep(0)

    async def _work(self, until: Callable[[Tally], bool]) -> None:
        connection: _Connection | None = None
        while not until(self._tally) and (number := next(self._numbers, None)) is not None:
            connection = await self._shoot(number, self._shots[number], connection)
        if connection is not None:
            connection.drop()

    async def _shoot(self, number: int, shot: Shot, connection: _Connection | None) -> _Connection | None:
        """Fire one shot and judge it; the connection if another may follow."""
        tally = self._tally
        if connection is None or not connection.reusable:
            loop = asyncio.get_running_loop()
            try:
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._open_ones), self._host, self._port
                )
            except OSError as error:
                tally.finding(number, shot, f"no connection: {error}")
                await asyncio.sleep(QUIET_S)
                return None
            tally.connections += 1
        tally.shots += 1
        tally.requests += shot.requests
        try:
            answers, ended = await connection.fire(shot)
            for answer in answers:
                tally.outcomes[shot.kind, str(answer.status)] += 1
                check(answer, shot.true_failures, bodiless=shot.bodiless)
            self._judge(shot, answers, ended)
            if not answers:
                tally.outcomes[shot.kind, ended] += 1
        except WrongAnswerError as wrong:
            tally.finding(number, shot, str(wrong))
            connection.drop()
            return None
        if shot.answers is None or ended == "silence" or not connection.reusable:
            connection.drop()
            return None
        return connection

    @staticmethod
    def _judge(shot: Shot, answers: list[Answer], ended: str) -> None:
        if shot.answers is None:
            return
        whole = sum(1 for answer in answers if not answer.cut)
        announced = bool(answers) and answers[-1].closes
        if whole > shot.answers:
            raise WrongAnswerError(f"{whole} answers to {shot.answers} requests")
        if whole < shot.answers and not announced and not (answers and answers[-1].broken_off):
            raise WrongAnswerError(f"{whole} answers to {shot.answers} requests, then {ended}")


def words(finding: Finding) -> str:
    """A finding for people: what came, and the beginning of what was sent."""
    sent = b"".join(finding.shot.pieces)
    more = f" and {len(sent) - _SHOWN_BYTES} bytes" if len(sent) > _SHOWN_BYTES else ""
    return (
        f"FOUND by shot {finding.number} ({finding.shot.kind}): {finding.what}\n    sent "
        f"{sent[:_SHOWN_BYTES]!r}{more}"
    )
