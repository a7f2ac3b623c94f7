"""A generator is a value: its figures, which are valid if it exists."""

import math
from collections.abc import Mapping
from typing import ClassVar

import msgspec

from proxy.errors import TraceError
from proxy.traces.blocks import MOONCAKE_BLOCK_TOKENS
from proxy.traces.workload import TraceRequest, Workload

MOST = 1e9
"""The most that a figure may be, where its generator says nothing else."""

MOST_SEED = 2**64 - 1


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a workload. They are means of what is drawn where nothing else is said."""

    name: ClassVar[str]
    most: ClassVar[Mapping[str, float]] = {}
    """The most that figures may be for which `MOST` is too much."""

    seed: int = 0
    duration_s: float = 600.0
    """How long requests come, or sessions begin."""
    block_tokens: int = MOONCAKE_BLOCK_TOKENS

    def __post_init__(self) -> None:
        """Raises TraceError, which names the figure."""
        bounds = {"seed": MOST_SEED, **self.most}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise TraceError(f"{self.name}: {name} is {value:g}, and must be 0 or more")
            if value > (most := bounds.get(name, MOST)):
                raise TraceError(f"{self.name}: {name} is {value:g}, and must be {most:g} or less")
        for name in ("duration_s", "block_tokens"):
            if not getattr(self, name):
                raise TraceError(f"{self.name}: {name} must be more than 0")

    def generate(self) -> Workload:
        """The workload. Raises TraceError if the figures make no request, or more than a machine can hold."""
        try:
            requests = self._requests()
        except TraceError as error:
            raise TraceError(f"{self.name}: {error}") from None
        if not requests:
            raise TraceError(f"{self.name}: these figures make no request within {self.duration_s:g} s")
        told = " ".join(f"{name}={getattr(self, name):g}" for name in self.__struct_fields__)
        return Workload(self.name, requests, f"generated: {self.name} {told}")

    def _requests(self) -> list[TraceRequest]:
        raise NotImplementedError
