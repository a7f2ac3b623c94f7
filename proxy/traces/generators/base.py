"""A generator is a value: its figures, which are valid if it exists."""

import math
from typing import ClassVar

import msgspec

from proxy.errors import TraceError
from proxy.traces.blocks import MOONCAKE_BLOCK_TOKENS
from proxy.traces.workload import TraceRequest, Workload


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a workload. They are means of what is drawn where nothing else is said."""

    name: ClassVar[str]

    seed: int = 0
    duration_s: float = 600.0
    """How long requests come, or sessions begin."""
    block_tokens: int = MOONCAKE_BLOCK_TOKENS

    def __post_init__(self) -> None:
        """Raises TraceError, which names the figure."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise TraceError(f"{self.name}: {name} is {value:g}, and must be 0 or more")
        for name in ("duration_s", "block_tokens"):
            if not getattr(self, name):
                raise TraceError(f"{self.name}: {name} must be more than 0")

    def generate(self) -> Workload:
        """The workload. Raises TraceError if the figures make no request."""
        requests = self._requests()
        if not requests:
            raise TraceError(f"{self.name}: these figures make no request within {self.duration_s:g} s")
        told = " ".join(f"{name}={getattr(self, name):g}" for name in self.__struct_fields__)
        return Workload(self.name, requests, f"generated: {self.name} {told}")

    def _requests(self) -> list[TraceRequest]:
        raise NotImplementedError
