"""Which connections of a socket stay open: those that are idle go first, the one that is idle for the longest before all others.

A connection is idle while it waits for a request, or for the rest of its head.
"""

import asyncio
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

    def force_close(self) -> None:
        """Close it."""
        ...


class Door:
    """The connections of one socket, those without a request in the order in which they have none."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._places: dict[Guest, Place] = {}
        self._resting: dict[Guest, None] = {}

    def comes(self, guest: Guest) -> bool:
        """A connection was accepted; False if it has to be closed."""
        place = self._place()
        if place is Place.NONE:
            return False
        self._places[guest] = place
        self._resting[guest] = None
        return True

    def leaves(self, guest: Guest) -> None:
        """It is closed, or about to be; a second call does nothing."""
        self._resting.pop(guest, None)
        if (place := self._places.pop(guest, None)) is not None:
            self._give_back(place)

    def is_spare(self, guest: Guest) -> bool:
        """Whether it is there for one answer only, which generates nothing."""
        return self._places.get(guest) is Place.SPARE

    def works(self, guest: Guest) -> None:
        """It has sent a request."""
        self._resting.pop(guest, None)

    def rests(self, guest: Guest) -> None:
        """Its request has ended."""
        if guest in self._places:
            self._resting[guest] = None

    def close_idle(self) -> bool:
        """Close the connection that is idle for the longest. False if none is."""
        for guest in [guest for guest, _ in zip(self._resting, range(LOOKS), strict=False)]:
            if guest.is_idle:
                self.leaves(guest)
                guest.force_close()
                self._descriptors.closed("idle")
                return True
            self.works(guest)
            self.rests(guest)  # it is looked at again after all others
        return False

    def _place(self) -> Place:
        raise NotImplementedError

    def _give_back(self, place: Place) -> None:
        raise NotImplementedError


class ClientDoor(Door):
    """The main socket's."""

    def __init__(self, descriptors: Descriptors) -> None:
        super().__init__(descriptors)
        descriptors.close_idle = self.close_idle

    def _place(self) -> Place:
        return self._descriptors.client_comes()

    def _give_back(self, place: Place) -> None:
        self._descriptors.client_leaves(place)


class OperatorDoor(Door):
    """The admin port's."""

    def _place(self) -> Place:
        return Place.SHARED if self._descriptors.operator_comes(self.close_idle) else Place.NONE

    def _give_back(self, place: Place) -> None:  # noqa: ARG002  # they have all the same
        self._descriptors.operator_leaves()
