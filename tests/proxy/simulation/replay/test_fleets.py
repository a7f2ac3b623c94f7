"""A fleet is written as counts of roles."""

import pytest

from proxy.errors import ConfigError
from proxy.phases import Role
from proxy.simulation.replay.fleets import parse_fleet


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2b", [("b0:1", Role.BOTH), ("b1:1", Role.BOTH)]),
        ("1p1d", [("p0:1", Role.PREFILL), ("d0:1", Role.DECODE)]),
        (" 1P1d1p ", [("p0:1", Role.PREFILL), ("d0:1", Role.DECODE), ("p1:1", Role.PREFILL)]),
    ],
)
def test_counts_and_letters_become_instances(text: str, expected: list[tuple[str, Role]]) -> None:
    assert parse_fleet(text) == expected


@pytest.mark.parametrize("text", ["", "p", "4", "4x", "2p", "2d", "0b", "-1b", "2000b", "1p 1d"])
def test_what_cannot_be_a_fleet_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--fleet"):
        parse_fleet(text)
