"""Times the latency model's predictions and updates, without engines."""

import random
import time
from collections.abc import Callable

from proxy.latency.model import LatencyModel
from proxy.latency.profiles import PROFILES, UNKNOWN
from proxy.latency.service_times import Leg

CALLS = 1000
PROMPT_TOKENS = 8000


class Bench:
    """A fleet of so many candidates, of which a model has learned."""

    def __init__(self, size: int) -> None:
        rng = random.Random(0)  # noqa: S311 - the same legs each time
        self.names = [f"10.0.0.{index}:8000" for index in range(size)]
        self.uncached = [rng.randint(1, PROMPT_TOKENS) for _ in self.names]
        self.model = LatencyModel(PROFILES[UNKNOWN])
        self._noise = rng
        self._ended = 0.0
        self._count = 0
        for name in self.names:
            self.model.join(name, "prefill", "m")
        for _ in range(50 * size):
            self.update()

    def one_by_one(self) -> None:
        """Predict each candidate alone."""
        prefill_ms = self.model.prefill_ms
        for name, uncached in zip(self.names, self.uncached, strict=True):
            prefill_ms(name, uncached, PROMPT_TOKENS)

    def at_once(self) -> None:
        """Predict all candidates together."""
        self.model.prefill_ms_of(self.names, self.uncached, PROMPT_TOKENS)

    def update(self) -> None:
        """Legs end one after the other, on each instance in turn."""
        tokens = self._noise.randint(1, PROMPT_TOKENS)
        began = self._ended + 0.01
        self._ended = began + 0.02 + 5e-5 * tokens * self._noise.uniform(0.9, 1.1)
        self._count += 1
        name = self.names[self._count % len(self.names)]
        self.model.leg_ended(name, Leg(began, self._ended, tokens, PROMPT_TOKENS))

    def update_and_predict(self) -> None:
        """Predictions after each update: the coefficients are gathered anew."""
        self.update()
        self.at_once()


def run(sizes: list[int], rounds: int) -> None:
    """Print a line for each number of candidates: microseconds."""
    print("candidates  one by one   each  at once   each  at once after an update   each  update")
    for size in sizes:
        bench = Bench(size)
        alone, together = _us(bench.one_by_one, rounds), _us(bench.at_once, rounds)
        update = _us(bench.update, rounds)
        after = _us(bench.update_and_predict, rounds) - update
        print(
            f"{size:10}  {alone:10.2f}  {alone / size:5.2f}  {together:7.2f}  {together / size:5.2f}"
            f"  {after:23.2f}  {after / size:5.2f}  {update:6.1f}"
        )


def _us(call: Callable[[], None], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time_ns()
        for _ in range(CALLS):
            call()
        best = min(best, (time.process_time_ns() - began) / CALLS / 1000)
    return best
