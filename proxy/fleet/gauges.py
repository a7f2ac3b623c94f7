"""What an engine tells of all that runs there is kept with its time and with what of it was ours.

An engine counts the requests of every router. Only beside the legs that this process had there meanwhile do
its figures say how much others sent.
"""

import msgspec


class Gauges(msgspec.Struct, frozen=True):
    """What an engine told once, over all of its ranks."""

    at: float
    """When, in seconds of the monotonic clock."""
    running: int
    """Requests that it computes or generates for (`vllm:num_requests_running`)."""
    waiting: int
    """Requests that wait there (`vllm:num_requests_waiting`)."""
    kv_use: float
    """The share of its KV blocks in use, from 0 to 1 (`vllm:kv_cache_usage_perc`); of several ranks the
    highest."""
    own: int
    """Sequences of this process that were there at any moment of the question, a leg for several answers
    counted as often: at least as many as the engine can have counted."""
    adapter_slots: int = 0
    """How many LoRA adapters it computes for at once; 0 if it does not tell."""
    adapters: frozenset[str] = frozenset()
    """The adapters in its batch (`vllm:lora_requests_info`)."""

    @property
    def requests(self) -> int:
        """All that run or wait."""
        return self.running + self.waiting

    @property
    def foreign(self) -> int:
        """How many of these at least are not ours."""
        return max(self.requests - self.own, 0)
