"""Invariant: a fault changes answers only while it is in force.

At each HTTP request the rules are looked through in order; the first that fits is applied, and used up if it
has a number of times. What concerns the whole engine (its port, its events, its life) is a method of
`StandIn`; `/faults` on the admin port has both.
"""

import asyncio
from typing import Literal

import msgspec


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way for requests to go wrong. `path` is a prefix of the request's path."""

    kind: Literal["hang", "slow", "status", "cut", "stall", "error"]
    path: str = "/v1/"
    times: int | None = None
    """The number of requests that it makes fail; None: all, until it is removed."""
    delay_s: float = 0.0
    """slow: how long a request waits before it is looked at. stall: how long the pause is, 0 for ever."""
    status: int = 503
    """status: the answer instead; its body is an error of that status. error: the one it fails with."""
    retry_after: str | None = None
    """status: the answer's Retry-After, if it has one."""
    after_bytes: int = 0
    """cut: how much of the answer's body is sent before the connection is torn down; 0: not even the head.
    stall: how much is sent before the pause; 0: not even the head of an unstreamed answer, which is
    computed."""
    after_chunks: int = 0
    """error: how many chunks of a stream are sent before its error event (the first of a chat only names the
    role). A stream that is shorter has no error; an unstreamed answer is an error of that status."""


class Faults:
    """The rules in force."""

    def __init__(self) -> None:
        self._rules: list[tuple[Fault, int | None]] = []
        self._released = asyncio.Event()

    def add(self, fault: Fault) -> None:
        """Append a rule: earlier rules come first."""
        self._rules.append((fault, fault.times))

    def clear(self) -> None:
        """Remove all rules. Requests that hang go on hanging until their client leaves or they are
        released.
        """
        self._rules.clear()

    def release(self) -> None:
        """Let the requests that hang now be answered; the rules stay."""
        self._released.set()
        self._released = asyncio.Event()

    async def hang(self) -> None:
        """Wait until the next `release`."""
        await self._released.wait()

    def active(self) -> list[Fault]:
        """The rules that are not used up."""
        return [fault for fault, _ in self._rules]

    def take(self, path: str) -> Fault | None:
        """The rule for a request, counted as used."""
        for index, (fault, left) in enumerate(self._rules):
            if not path.startswith(fault.path):
                continue
            if left is None:
                return fault
            if left > 1:
                self._rules[index] = (fault, left - 1)
            else:
                del self._rules[index]
            return fault
        return None
