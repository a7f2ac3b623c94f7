"""An instance is wanted while a source wants it whose wish no operator has struck out since.

Pure: wishes of sources come in, and what to do about them goes out.
"""

from typing import NamedTuple

from proxy.config import InstanceSpec


class Wish(NamedTuple):
    """What one source wants at an address."""

    spec: InstanceSpec
    drained: bool = False
    vital: bool = False


class Roster:
    """Which sources want which instances."""

    def __init__(self) -> None:
        self._wishes: dict[str, dict[str, Wish | None]] = {}
        """The wishes by address and source; None for a wish that an operator has struck out."""

    def want(self, source: str, wish: Wish) -> bool:
        """A source wants an instance. Returns whether that is new: to repeat a wish is not, struck out or
        not.
        """
        wishes = self._wishes.setdefault(wish.spec.address, {})
        if source in wishes:
            return False
        wishes[source] = wish
        return True

    def drop(self, source: str, address: str) -> bool:
        """A source does not want an instance any more. Returns whether it did."""
        wishes = self._wishes.get(address, {})
        if source not in wishes:
            return False
        del wishes[source]
        if not wishes:
            del self._wishes[address]
        return True

    def strike(self, address: str, by: str) -> None:
        """An operator removes an instance: the wish of the source `by`, through which that is said, is
        dropped, and all others are struck out.
        """
        wishes = self._wishes.pop(address, {})
        if others := dict.fromkeys(source for source in wishes if source != by):
            self._wishes[address] = {**others}

    def wish(self, address: str) -> Wish | None:
        """The oldest wish for an address that is not struck out; None if there is none."""
        return next((wish for wish in self._wishes.get(address, {}).values() if wish is not None), None)
