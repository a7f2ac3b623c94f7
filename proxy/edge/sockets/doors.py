"""Which connections of a socket stay open: those that are idle go first, the one that is idle for the longest
before all others.

A connection is idle while it waits for a request, or for the rest of its head. Where none is idle, the one
goes whose request has been coming for the longest.
"""

import asyncio
from abc import ABC, abstractmethod
from typing import Protocol

from proxy.descriptors import Descriptors, Place

LOOKS = 8
"""At connections that have written an answer since their request ended, and are no longer or not yet idle."""


RELIEVE_EVERY_S = 0.5


async def keep_room(descriptors: Descriptors) -> None:
    """Close idle connections whenever there are too many, for ever."""
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
        """Whether the body of its request has not come to its end."""
        ...

    def force_close(self) -> None:
        """Close it."""
        ...


class Door(ABC):
    """The connections of one socket, those without a request in the order in which they have none."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._places: dict[Guest, Place] = {}
        self._resting: dict[Guest, None] = {}
        self._reading: dict[Guest, None] = {}
        """Those that had not sent all of their requests when these began, in that order."""

    def comes(self, guest: Guest) -> bool:
        """A connection was accepted; it is closed if this is False."""
        place = self._place()
        if place is Place.NONE:
            self._tell_to_close(guest)
            return False
        self._places[guest] = place
        self._resting[guest] = None
        return True

    def closed(self, guest: Guest) -> None:
        """Its connection is closed."""
        self._leaves(guest)
        self._descriptors.has_closed(guest)

    def _leaves(self, guest: Guest) -> None:
        self._resting.pop(guest, None)
        self._reading.pop(guest, None)
        if (place := self._places.pop(guest, None)) is not None:
            self._give_back(place)

    def is_spare(self, guest: Guest) -> bool:
        """Whether it is there for one answer only, which generates nothing."""
        return self._places.get(guest) is Place.SPARE

    def works(self, guest: Guest) -> None:
        """A guest has sent the head of a request."""
        self._resting.pop(guest, None)
        if guest.is_reading and guest in self._places:
            self._reading[guest] = None

    def rests(self, guest: Guest) -> None:
        """Its request has ended."""
        self._reading.pop(guest, None)
        if guest in self._places:
            self._resting[guest] = None

    def make_room(self) -> bool:
        """Close the connection that is idle for the longest, else the one that is read from for the longest.

        False if there is neither.
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
            self._resting[guest] = self._resting.pop(guest)  # it is looked at again after all others
        return False

    @abstractmethod
    def _place(self) -> Place:
        """Take a place for a connection that comes."""

    @abstractmethod
    def _give_back(self, place: Place) -> None:
        """A connection has left its place."""


class ClientDoor(Door):
    """The main socket's."""

    def __init__(self, descriptors: Descriptors) -> None:
        super().__init__(descriptors)
        descriptors.make_room = self.make_room

    def _place(self) -> Place:
        return self._descriptors.client_comes()

    def _give_back(self, place: Place) -> None:
        self._descriptors.client_leaves(place)


class OperatorDoor(Door):
    """The admin port's."""

    def _place(self) -> Place:
        return Place.SHARED if self._descriptors.operator_comes(self.make_room) else Place.NONE

    def _give_back(self, place: Place) -> None:  # noqa: ARG002  # they have all the same
        self._descriptors.operator_leaves()
