from collections.abc import Iterator

import pytest

from tests.kvevents.bench import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for publisher in bench.publishers:
        publisher.close()
