"""Why an instance is passed over is one vocabulary: what is documented is what there is, and nothing else is
said."""

import pathlib
import re
from collections.abc import Callable

from proxy.config import parse_instance
from proxy.edge.routes.openapi import description
from proxy.fleet import Instance, ModelCard, Status
from proxy.fleet.why import ASIDE, FAILS_LEGS, NO_ROOM, Why
from proxy.phases import Role

DOCS = pathlib.Path(__file__).parents[3] / "docs"


def documented() -> list[str]:
    text = (DOCS / "operating.md").read_text()
    section = re.split(r"^##+ ", text.split("### Why an instance is passed over\n")[1], flags=re.MULTILINE)[0]
    return [word for word in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE) if word != "why"]


def test_the_documentation_lists_each_in_this_order() -> None:
    assert documented() == [why.value for why in Why]


def test_the_described_answer_knows_each_in_this_order() -> None:
    schemas = description()["components"]["schemas"]
    assert schemas["Candidate"]["properties"]["why"]["anyOf"] == [
        {"$ref": "#/components/schemas/Why"},
        {"type": "null"},
    ]
    assert schemas["Why"]["enum"] == [why.value for why in Why]


def test_what_is_set_aside_comes_last_and_gets_graver() -> None:
    assert list(Why)[-len(ASIDE) :] == list(ASIDE)
    assert {*ASIDE} > FAILS_LEGS
    assert not NO_ROOM & {*ASIDE}


def test_whatever_a_check_finds_there_is_a_reason_for() -> None:
    instance = Instance(parse_instance("a:1", Role.BOTH))
    instance.listed([ModelCard("tiny")], 0.0)
    changes: dict[Status, Callable[[], None]] = {
        Status.STARTING: lambda: None,
        Status.UP: instance.came_up,
        Status.ASLEEP: instance.fell_asleep,
        Status.DOWN: lambda: instance.went_down("gone"),
        Status.REFUSED: lambda: instance.was_refused("another model"),
    }
    for status in Status:
        changes[status]()
        assert instance.status is status
        why = instance.why_unusable("tiny")
        assert (why is None) if status is Status.UP else (isinstance(why, Why) and why.value == status.value)
    instance.came_up()
    assert instance.why_unusable("other") is Why.NOT_SERVED
    instance.drain()
    assert instance.why_unusable("other") is Why.DRAINING
