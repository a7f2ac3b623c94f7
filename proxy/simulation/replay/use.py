"""What an instance did with its time is added up as each of its steps ends, and where it is in the run."""

BIN_S = 5.0
"""Seconds that are told apart."""


class Bin:
    """What an instance did in a few seconds."""

    __slots__ = ("decode_s", "prefill_s", "running", "usage", "waiting")

    def __init__(self) -> None:
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.running = 0
        """Most requests in its batch; as all of these, of moments at which a step began."""
        self.waiting = 0
        """Most requests in its queue."""
        self.usage = 0.0
        """Most of its KV blocks in use, as a share."""


class Use:
    """What an instance did with its time. Seconds."""

    def __init__(self) -> None:
        self.prefill_s = 0.0
        """In steps that compute prompts."""
        self.decode_s = 0.0
        """In steps that only generate."""
        self.steps = 0
        self.prefilled_tokens = 0
        self.generated_tokens = 0
        self.preemptions = 0
        self.gaps: list[tuple[float, int]] = []
        """Seconds between two tokens of a request, and how many gaps were that long; of steps that were taken
        at once their mean."""
        self.bins: dict[int, Bin] = {}
        """By the number of the bin; those in which it did nothing are missing."""

    def stepped(self, begun_s: float, seconds: float, *, steps: int = 1, prefilled_tokens: int = 0) -> None:
        """Steps are over that began at `begun_s` and took so long together; steps that computed a prompt if
        there are `prefilled_tokens`. A step that reaches into another bin counts where it began.
        """
        if prefilled_tokens:
            self.prefill_s += seconds
            self.prefilled_tokens += prefilled_tokens
        else:
            self.decode_s += seconds
        self.steps += steps
        first, last = int(begun_s / BIN_S), int((begun_s + seconds) / BIN_S)
        if steps == 1:
            last = first
        for number in range(first, last + 1):
            within_s = min(begun_s + seconds, (number + 1) * BIN_S) - max(begun_s, number * BIN_S)
            here = self._bin(number)
            if prefilled_tokens:
                here.prefill_s += seconds if first == last else within_s
            else:
                here.decode_s += seconds if first == last else within_s

    def begins(self, at_s: float, running: int, waiting: int, usage: float) -> None:
        """A step begins with so many requests in the batch and in the queue."""
        here = self._bin(int(at_s / BIN_S))
        here.running = max(here.running, running)
        here.waiting = max(here.waiting, waiting)
        here.usage = max(here.usage, usage)

    def _bin(self, number: int) -> Bin:
        found = self.bins.get(number)
        if found is None:
            found = self.bins[number] = Bin()
        return found
