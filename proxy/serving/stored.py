"""Which instance stores a response is remembered until newer responses take its place; whose it is, too.

Pure. vLLM stores responses in the memory of the engine that answered, if `VLLM_ENABLE_RESPONSES_API_STORE=1`
is set there, so what builds on one, or asks about it, can be answered there alone.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

MAX_RESPONSES = 1 << 15
"""How many responses are remembered: some 10 MB. An engine stores each until it ends."""


class Place(NamedTuple):
    """Where a response is."""

    instance: str
    client: str | None
    """The name of the client key that it was asked for with; None if no keys are asked for."""


class StoredResponses:
    """The places of responses, by their ids."""

    def __init__(self, most: int = MAX_RESPONSES) -> None:
        """`most`: the number of responses that are remembered."""
        self._most = most
        self._places: OrderedDict[str, Place] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._places)

    def keep(self, response_id: str, place: Place) -> None:
        """A response was answered; the oldest one makes room."""
        self._places[response_id] = place
        self._places.move_to_end(response_id)
        if len(self._places) > self._most:
            self._places.popitem(last=False)

    def find(self, response_id: str) -> Place | None:
        """Where a response is; None if it is not known."""
        return self._places.get(response_id)

    # -- over a restart -------------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Place]:
        """All that is known, as JSON can say it, the oldest first; it is no copy."""
        return self._places

    def restore(self, state: Any) -> None:
        """Take what `state` gave. Raises ValueError if it cannot be that."""
        for response_id, place in msgspec.convert(state, dict[str, Place]).items():
            self.keep(response_id, place)
