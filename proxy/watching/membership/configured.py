"""The instances that flags name are wanted all the time; if one of them serves another model, kvproxy ends at
once.
"""

from collections.abc import Collection, Sequence

from proxy.config import InstanceSpec
from proxy.watching.membership.base import Wants


class Configured:
    """The instances of a configuration; implements MembershipSource."""

    name = "the flags"

    def __init__(self, specs: Sequence[InstanceSpec], *, drained: Collection[str] = ()) -> None:
        """`drained`: addresses of instances that get no legs, as an operator said before a restart."""
        self._specs = specs
        self._drained = drained

    def start(self, wants: Wants) -> None:
        """Want all instances of the configuration."""
        for spec in self._specs:
            wants.want(spec, drained=spec.address in self._drained, vital=True)

    async def close(self) -> None:
        """There is nothing to close."""
