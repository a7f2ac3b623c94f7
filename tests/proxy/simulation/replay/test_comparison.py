"""A comparison runs each setup by itself and has a line for each."""

import pathlib
import re
from collections.abc import Iterator

import msgspec
import pytest

from proxy.errors import ConfigError
from proxy.simulation.replay.comparison import Comparison, as_table, cells_of, names_of_policies
from proxy.simulation.replay.run import Progress, Setup
from tests.proxy.simulation.replay.workloads import conversations


def test_each_setup_has_a_cell_and_a_line() -> None:
    workload = conversations(40)
    setups = [
        Setup(fleet=fleet, policy="dynamo", speed=speed) for fleet in ("2b", "1p1d") for speed in (1, 2)
    ]
    told: list[Setup] = []

    def progress(setup: Setup) -> Progress | None:
        told.append(setup)
        return None

    cells = list(cells_of(workload, setups, progress))
    assert told == setups
    assert [(cell.fleet, cell.speed) for cell in cells] == [(each.fleet, each.speed) for each in setups]
    head, *lines = as_table(cells).splitlines()
    assert head.split()[:5] == ["fleet", "speed", "policy", "served", "good"]
    assert [line.split()[:4] for line in lines] == [
        [fleet, speed, "dynamo", "40/40"] for fleet in ("2b", "1p1d") for speed in ("1", "2")
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_cell_is_as_if_it_were_alone() -> None:
    workload, setup = conversations(40), Setup(fleet="2b", policy="approx_prefix")
    first, second = cells_of(workload, [setup, setup])
    assert first.figures.ttft_ms == second.figures.ttft_ms
    assert first.figures.reuse == second.figures.reuse


def test_all_policies_are_kvproxys_and_the_baselines() -> None:
    names = names_of_policies()
    assert {"cache_affinity", "round_robin", "dynamo", "llmd"} <= set(names)
    assert len(names) == len(set(names))


def test_a_setup_that_cannot_be_run_ends_the_comparison() -> None:
    with pytest.raises(ConfigError):
        list(cells_of(conversations(1), [Setup(profile="none")]))


WHOLE = {"setup.admission"}
"""Members that the page explains as a whole: settings, which have a page of their own."""


def members(kind: msgspec.inspect.Type, path: str) -> Iterator[str]:
    """Where the values of JSON are, as the page writes it."""
    if path in WHOLE:
        yield path
    elif isinstance(kind, msgspec.inspect.StructType):
        for field in kind.fields:
            yield from members(field.type, f"{path}.{field.encode_name}".lstrip("."))
    elif isinstance(kind, msgspec.inspect.CollectionType):
        yield from members(kind.item_type, f"{path}[]")
    elif isinstance(kind, msgspec.inspect.DictType) and isinstance(
        kind.value_type, msgspec.inspect.StructType
    ):
        yield from members(kind.value_type, f"{path}.*")
    else:
        yield path


def test_every_member_of_the_figures_is_explained() -> None:
    page = pathlib.Path("docs/simulate.md").read_text()
    page = page.partition("### figures.json")[2].partition("\n## ")[0]
    explained: list[str] = []
    for first in re.findall(r"^\| (`.*?) \| \S", page, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", first):
            explained.append(explained[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    assert sorted(explained) == sorted(members(msgspec.inspect.type_info(Comparison), ""))
