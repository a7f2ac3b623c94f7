"""When connections must be closed, the one that has been idle for the longest is closed first.

A connection is idle while it waits for a request, or for the rest of a request's head. If none is idle, the
one is closed whose request has been arriving for the longest. A `Door` keeps this order for one socket.
"""

import asyncio
from abc import ABC, abstractmethod
from typing import Protocol

from proxy.descriptors import Descriptors, Place

LOOKS = 8
"""How many connections are looked at for one that can be closed. Most in the order can: only one whose next
request has just begun, or whose last answer is still being written, is not idle."""


RELIEVE_EVERY_S = 0.5
"""How often idle connections are closed if too few descriptors are left."""


async def keep_room(descriptors: Descriptors) -> None:
    """Have connections closed whenever too few descriptors are left; runs until it is cancelled."""
    while True:
        await asyncio.sleep(RELIEVE_EVERY_S)
        descriptors.relieve()


class Guest(Protocol):
    """A connection, as its door sees it."""

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        ...

    @property
    def is_reading(self) -> bool:
        """Whether the body of its request has not fully arrived."""
        ...

    def force_close(self) -> None:
        """Close the connection, whatever it does."""
        ...


class Door(ABC):
    """The connections of one socket; those without a request in the order in which their last one ended."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._places: dict[Guest, Place] = {}
        self._resting: dict[Guest, None] = {}
        self._reading: dict[Guest, None] = {}
        """Connections whose body had not fully arrived when its request began, in the order of that."""

    def comes(self, guest: Guest) -> bool:
        """A connection was accepted. False if there was no place for it: it is closed then."""
        place = self._place()
        if place is Place.NONE:
            self._tell_to_close(guest)
            return False
        self._places[guest] = place
        self._resting[guest] = None
        return True

    def closed(self, guest: Guest) -> None:
        """The connection is closed: its place is free, and so is its descriptor."""
        self._leaves(guest)
        self._descriptors.has_closed(guest)

    def _leaves(self, guest: Guest) -> None:
        self._resting.pop(guest, None)
        self._reading.pop(guest, None)
        if (place := self._places.pop(guest, None)) is not None:
            self._give_back(place)

    def is_spare(self, guest: Guest) -> bool:
        """Whether the connection has a spare place: it gets one answer, and none that generates."""
        return self._places.get(guest) is Place.SPARE

    def works(self, guest: Guest) -> None:
        """The connection has sent the head of a request."""
        self._resting.pop(guest, None)
        if guest.is_reading and guest in self._places:
            self._reading[guest] = None

    def rests(self, guest: Guest) -> None:
        """The connection's request has ended."""
        self._reading.pop(guest, None)
        if guest in self._places:
            self._resting[guest] = None

    def make_room(self) -> bool:
        """Close the connection that has been idle for the longest, or else the one whose request has been
        arriving for the longest. False if there is neither.
        """
        return self._close_idle() or self._close_reading()

    def _close_reading(self) -> bool:
        for guest in [guest for guest, _ in zip(self._reading, range(LOOKS), strict=False)]:
            if guest.is_reading:
                self._close(guest, "reading")
                return True
            del self._reading[guest]
        return False

    def _close(self, guest: Guest, reason: str) -> None:
        self._leaves(guest)
        self._tell_to_close(guest)
        self._descriptors.closed(reason)

    def _tell_to_close(self, guest: Guest) -> None:
        self._descriptors.closes(guest)
        guest.force_close()

    def _close_idle(self) -> bool:
        for guest in [guest for guest, _ in zip(self._resting, range(LOOKS), strict=False)]:
            if guest.is_idle:
                self._close(guest, "idle")
                return True
            self._resting[guest] = self._resting.pop(guest)  # to the end: it is looked at after all others
        return False

    @abstractmethod
    def _place(self) -> Place:
        """Take a place for a new connection; Place.NONE if there is none."""

    @abstractmethod
    def _give_back(self, place: Place) -> None:
        """Free the place of a connection."""


class ClientDoor(Door):
    """The door of the main socket."""

    def __init__(self, descriptors: Descriptors) -> None:
        super().__init__(descriptors)
        descriptors.make_room = self.make_room

    def _place(self) -> Place:
        return self._descriptors.client_comes()

    def _give_back(self, place: Place) -> None:
        self._descriptors.client_leaves(place)


class OperatorDoor(Door):
    """The door of the admin port."""

    def _place(self) -> Place:
        return Place.SHARED if self._descriptors.operator_comes(self.make_room) else Place.NONE

    def _give_back(self, place: Place) -> None:  # noqa: ARG002  # all its places are alike
        self._descriptors.operator_leaves()
