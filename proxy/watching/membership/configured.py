"""What the flags name is wanted from the beginning to the end; an engine of another model there ends kvproxy
at once.
"""

from collections.abc import Collection, Sequence

from proxy.config import InstanceSpec
from proxy.watching.membership.base import Wants


class Configured:
    """The instances of a configuration; implements MembershipSource."""

    name = "the flags"

    def __init__(self, specs: Sequence[InstanceSpec], *, drained: Collection[str] = ()) -> None:
        """`drained`: addresses of those that get no legs, as an operator said before a restart."""
        self._specs = specs
        self._drained = drained

    def start(self, wants: Wants) -> None:
        """Want all of them."""
        for spec in self._specs:
            wants.want(spec, drained=spec.address in self._drained, vital=True)

    async def close(self) -> None:
        """Nothing goes on here."""
