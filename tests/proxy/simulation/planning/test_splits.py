"""Splits use every GPU, and of many those around the best are tried."""

import pytest

from proxy.errors import ConfigError
from proxy.simulation.planning.splits import FEW, first_of, instances_of, mixed, next_of, parted, whole
from proxy.simulation.replay.fleets import parse_fleet


def test_every_instance_has_a_role() -> None:
    assert parted(4) == ["1p3d", "2p2d", "3p1d"]
    assert parted(1) == []
    assert whole(4) == "4b"
    assert mixed(4) == ["1p2d1b", "2p1d1b", "1p1d2b"]
    for fleet in (*parted(7), whole(7), *mixed(7)):
        assert len(parse_fleet(fleet)) == 7


def test_gpus_make_whole_instances() -> None:
    assert instances_of(8, 2) == 4
    with pytest.raises(ConfigError, match=r"--gpus 7: no multiple of --gpus-per-instance 2"):
        instances_of(7, 2)
    with pytest.raises(ConfigError, match=r"--gpus 4096: at most 1024 instances"):
        instances_of(4096, 1)


@pytest.mark.parametrize("best", [0, 1, 17, 40, 62])
def test_of_many_the_best_is_reached(best: int) -> None:
    line = parted(64)
    tried = first_of(line)
    assert len(tried) == FEW
    for _ in range(9):
        leads = min(sorted(tried), key=lambda place: abs(place - best))
        tried += next_of(tried, leads)
    assert best in tried
    assert len(set(tried)) == len(tried) < 20
    assert next_of(tried, best) == []


def test_few_are_all_tried() -> None:
    assert first_of(parted(8)) == [*range(7)]
    assert next_of([*range(7)], 3) == []
    assert first_of([]) == []
