"""Read a Prometheus page: the sum of a metric over the series that carry the given labels."""

import dataclasses
from collections.abc import Iterator

import aiohttp
from prometheus_client.parser import text_string_to_metric_families


@dataclasses.dataclass(frozen=True)
class Page:
    """One reading of /metrics."""

    text: str

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples called `name` (0 if there are none) whose labels include `labels`."""
        return sum(value for _, value in self._samples(name, labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """As total, for each value of one label."""
        sums: dict[str, float] = {}
        for found, value in self._samples(name, labels):
            key = found.get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def _samples(self, name: str, labels: dict[str, str]) -> Iterator[tuple[dict[str, str], float]]:
        lines = [line for line in self.text.splitlines() if line.startswith(name)]
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample.labels, sample.value


async def read_metrics(session: aiohttp.ClientSession, url: str) -> Page:
    """Read the metrics of the engine or proxy at `url`."""
    async with session.get(f"{url}/metrics") as answer:
        answer.raise_for_status()
        return Page(await answer.text())
