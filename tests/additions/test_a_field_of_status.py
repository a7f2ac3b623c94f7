"""A field that operators are shown is declared once: served, described and checked are then the same."""

from typing import Annotated, Any

import msgspec
import pytest

from proxy.edge.shown.schemas import schemas
from proxy.edge.shown.status import InFlightShown
from proxy.phases import Role
from proxy.shown import Seconds, Shown, as_builtins, says


class ShelfShown(Shown, frozen=True, kw_only=True):
    """What is added: where an engine stands."""

    rack: Annotated[str, says("The rack it is in.")]
    role: Role
    warm_s: Annotated[Seconds | None, says("For how long; null if it never was.")]
    in_flight: InFlightShown


def test_the_field_is_described_by_name_with_its_parts() -> None:
    made = schemas((ShelfShown,))
    assert {*made} == {"Shelf", "Role", "InFlight"}
    assert made["Shelf"] == {
        "description": "What is added: where an engine stands.",
        "type": "object",
        "properties": {
            "rack": {"type": "string", "description": "The rack it is in."},
            "role": {"$ref": "#/components/schemas/Role"},
            "warm_s": {
                "anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}],
                "description": "For how long; null if it never was.",
            },
            "in_flight": {"$ref": "#/components/schemas/InFlight"},
        },
        "required": ["rack", "role", "warm_s", "in_flight"],
        "additionalProperties": False,
    }


def test_the_struct_is_served_in_the_order_of_its_fields() -> None:
    shown = ShelfShown(rack="a", role=Role.BOTH, warm_s=None, in_flight=InFlightShown(prefill=1))
    assert [*as_builtins(shown).items()] == [
        ("rack", "a"),
        ("role", "both"),
        ("warm_s", None),
        ("in_flight", {"prefill": 1}),
    ]


@pytest.mark.parametrize("change", [{"rack": 1}, {"warm_s": -1.0}, {"role": "other"}, {"shelf": "b"}])
def test_an_answer_that_differs_from_the_struct_is_refused(change: dict[str, Any]) -> None:
    right = {"rack": "a", "role": "both", "warm_s": 2.0, "in_flight": {}}
    assert msgspec.convert(right, ShelfShown).warm_s == 2.0
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(right | change, ShelfShown)
