"""What operators are answered and what `/openapi.json` says of it are one: the schemas are made of the
structs, and each enum has the words of the one place where they are said."""

import enum
import pathlib
import re
from typing import Any

import msgspec
import pytest

from kvevents import Resumed, State
from proxy.caches.shown import LegsShown, MissesShown
from proxy.caches.tallies import Cause, Outcome
from proxy.config import WhenNoPrefill
from proxy.doctor.shown import CountsShown, Verdict
from proxy.edge.routes.openapi import description
from proxy.edge.shown.explanation import UNITS
from proxy.edge.shown.schemas import STRUCTS, schemas
from proxy.edge.shown.status import InFlightShown
from proxy.findings import Status as FindingStatus
from proxy.fleet import Status
from proxy.fleet.circuit import Circuit
from proxy.fleet.instance import InstanceState
from proxy.fleet.why import Why
from proxy.phases import Phase, Role
from proxy.scheduling.bypass import Bypass
from proxy.scheduling.policies import POLICIES
from proxy.tokenizing.shown import TokenPath
from proxy.tokenizing.why_unknown import WhyUnknown

OBJECTS = {name: schema for name, schema in schemas().items() if "properties" in schema}
ASKED = {"Add", "Drain", "Remove"}


def members(struct: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(struct)]


def test_the_document_has_them_as_they_are_and_tells_no_other_of_the_same_name() -> None:
    whole = description()["components"]["schemas"]
    assert {name: whole[name] for name in schemas()} == schemas()
    assert len({kind.__name__ for kind in STRUCTS}) == len(STRUCTS)


@pytest.mark.parametrize("name", OBJECTS)
def test_nothing_is_served_that_is_not_described(name: str) -> None:
    schema = OBJECTS[name]
    assert schema["additionalProperties"] is False
    if name not in ASKED and name != "InFlight":
        assert schema["required"] == list(schema["properties"]), "a field with a default may be absent"


def test_every_schema_says_what_it_is() -> None:
    assert [name for name, schema in schemas().items() if not schema.get("description")] == []
    assert not [name for name, schema in schemas().items() if "\n" in str(schema)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Role", Role),
        ("Why", Why),
        ("Bypass", Bypass),
        ("InstanceState", InstanceState),
        ("Circuit", Circuit),
        ("IndexState", State),
        ("Resumed", Resumed),
        ("TokenPath", TokenPath),
        ("WhyUnknown", WhyUnknown),
        ("WhenNoPrefill", WhenNoPrefill),
        ("FindingStatus", FindingStatus),
        ("Verdict", Verdict),
    ],
)
def test_an_enum_is_described_in_its_own_order(name: str, words: type[enum.StrEnum]) -> None:
    assert schemas()[name]["type"] == "string"
    assert schemas()[name]["enum"] == [word.value for word in words]


def test_no_enum_is_left_out_above() -> None:
    enums = {name for name, schema in schemas().items() if "enum" in schema}
    (tried,) = (mark for mark in test_an_enum_is_described_in_its_own_order.pytestmark if mark.args)  # type: ignore[attr-defined]  # pytest sets it
    assert enums == {name for name, _ in tried.args[1]}


def test_members_that_are_words_of_an_enum_are_all_of_them() -> None:
    assert members(MissesShown) == [cause.value for cause in Cause]
    assert members(CountsShown) == [status.value for status in FindingStatus]
    assert members(InFlightShown) == [phase.value for phase in Phase]
    assert {outcome.value for outcome in Outcome} < set(members(LegsShown))
    assert {state.value for state in InstanceState} == {status.value for status in Status} | {"draining"}
    assert {verdict.value for verdict in Verdict} == {status.value for status in FindingStatus} - {"skip"}


def test_the_manual_lists_why_a_prompt_is_not_known() -> None:
    page = (pathlib.Path(__file__).parents[3] / "docs" / "tokens.md").read_text()
    table = page.partition("| `why_unknown` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == [why.value for why in WhyUnknown]


def test_the_units_that_are_described_are_those_of_the_policies() -> None:
    described = schemas()["Explanation"]["properties"]["unit"]
    assert (
        described["examples"]
        == UNITS
        == sorted({str(getattr(kind, "unit", None)) for kind in POLICIES.values()})
    )
    assert all(f"`{unit}`" in described["description"] for unit in UNITS)


@pytest.mark.parametrize("struct", STRUCTS)
def test_an_answer_with_more_or_fewer_members_than_described_is_refused(struct: type[Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"another": 1}', type=struct)
