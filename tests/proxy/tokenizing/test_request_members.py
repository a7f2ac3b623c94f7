"""Which members shape a prompt: vLLM's are all placed, what clients make up is bounded, engines' own words
decide."""

import json
from typing import Any

import pytest

from proxy.request import dialects
from proxy.request.body import Body
from proxy.request.dialects import Dialect
from proxy.simulation.api.openapi import CHAT, COMPLETION, document
from proxy.tokenizing.distrust import DISTRUST_S, MAX_KINDS, Distrust
from proxy.tokenizing.engine_facts import EngineFacts
from proxy.tokenizing.members import MemberNames, Members, kind_of, members_of, shown
from proxy.tokenizing.schemas import read_schema
from proxy.tokenizing.tool_choices import Choice, Tools, judge, questions, together

SCHEMA: dict[Dialect, frozenset[str]] = {dialects.CHAT: CHAT, dialects.COMPLETIONS: COMPLETION}


def sorted_(dialect: Dialect, *names: str, null: bool = False) -> Members:
    body = Body.parse(json.dumps(dict.fromkeys(names, None if null else 1)).encode())
    return members_of(body, dialect, lambda dialect, name: name in SCHEMA[dialect], MemberNames())


@pytest.mark.parametrize("dialect", dialects.TOKENIZED)
def test_every_member_of_vllm_has_its_place(dialect: Dialect) -> None:
    shape_as_only_engines_know = {"suffix", "prompt_embeds"}
    for name in SCHEMA[dialect]:
        found = sorted_(dialect, name)
        assert found.ignored == (), name
        assert found.unknown == ((name,) if name in shape_as_only_engines_know else ()), name


def test_members_count_for_the_route_they_belong_to() -> None:
    assert sorted_(dialects.CHAT, "documents", "tools").shaping == {"documents", "tools"}
    assert sorted_(dialects.COMPLETIONS, "documents", "tools").ignored == ("documents", "tools")
    assert sorted_(dialects.CHAT, "suffix", "prompt").ignored == ("prompt", "suffix")
    assert sorted_(dialects.CHAT, "response_format", "temperature").rarely == {"response_format"}
    assert sorted_(dialects.CHAT, "reasoning", "suffix", "tools", null=True) == sorted_(dialects.CHAT)


def kind(names: MemberNames, *ignored: str) -> str:
    return kind_of(dialects.CHAT.name, (), (), names.apart(ignored))


def test_kinds_by_names_that_clients_make_up_are_few() -> None:
    names = MemberNames()
    kinds = {kind(names, f"made_up_{n}") for n in range(10_000)}
    assert len(kinds) == 65
    assert names.apart([f"made_up_{n}" for n in range(9)]) == ("many",)
    for odd in ("x" * 49, "my secret is 42", "", "ключ", "a\nb"):
        assert MemberNames().apart([odd]) == ("another",)


def test_a_name_that_is_used_again_is_told_apart_however_many_were_made_up() -> None:
    names = MemberNames()
    for n in range(500):
        kind(names, f"made_up_{n}")
    junk = kind(names, "made_up_500")
    kind(names, "honest")
    assert kind(names, "honest") not in {junk, kind(names)}
    for n in range(500):  # each twice, and the honest one all the time
        kind(names, f"twice_{n}")
        kind(names, f"twice_{n}")
        assert names.apart(["honest"]) == ("honest",)
    assert names.apart(["made_up_0"]) == ("another",), "not used for long"


def test_names_are_shown_plain_short_and_not_too_many() -> None:
    assert shown(["b", "a"]) == ("a", "b")
    assert shown(["my secret is 42", "", "ключ", "a", "a\nb"]) == ("a", "another")
    assert shown(["x" * 49]) == ("x" * 48 + "...",)
    assert shown([f"n{n:03}" for n in range(100)]) == (*(f"n{n:03}" for n in range(32)), "68 more")


def test_few_kinds_are_distrusted_and_none_for_ever() -> None:
    now = [0.0]
    distrust = Distrust(lambda: now[-1])
    for n in range(MAX_KINDS + 10):
        distrust.add(f"kind {n}")
    assert len(distrust) == MAX_KINDS
    assert "kind 9" not in distrust
    assert "kind 10" in distrust
    now.append(DISTRUST_S + 1)
    assert "kind 10" not in distrust


# ---- schemas ----------------------------------------------------------------------------------------------


def test_a_schema_is_read_through_its_references() -> None:
    assert read_schema(json.dumps(document()).encode()) == SCHEMA
    told = document(more=["reasoning"])
    operation = told["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
    operation["schema"] = {
        "anyOf": [{"allOf": [operation["schema"], {"properties": {"odd": {}}}]}, {"type": "null"}]
    }
    assert read_schema(json.dumps(told).encode()) == {
        dialects.CHAT: CHAT | {"reasoning"},
        dialects.COMPLETIONS: COMPLETION | {"reasoning", "odd"},
    }


def turns_in_circles() -> Any:
    told = document()
    told["components"]["schemas"]["CompletionRequest"] = {"$ref": "#/components/schemas/CompletionRequest"}
    return told


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"paths": []}',
        b'{"paths": {"/v1/completions": 1}}',
        b"\xff",
        turns_in_circles(),
    ],
)
def test_what_is_no_schema_of_requests_says_nothing(told: Any) -> None:
    with pytest.raises(ValueError, match="OpenAPI document"):
        read_schema(told if isinstance(told, bytes) else json.dumps(told).encode())


def test_one_engine_that_knows_a_member_is_enough_while_it_is_there() -> None:
    facts = EngineFacts()
    facts.learn_schema("a:1", "0.32.0", SCHEMA)
    assert not facts.knows(dialects.CHAT, "reasoning")
    facts.learn_schema("b:1", "0.40.0", {**SCHEMA, dialects.CHAT: CHAT | {"reasoning"}})
    assert facts.knows(dialects.CHAT, "reasoning")
    assert facts.schema_versions == ["0.32.0", "0.40.0"]
    facts.keep(["a:1"])
    assert not facts.knows(dialects.CHAT, "reasoning")
    assert facts.lacks_schema("b:1")
    assert facts.runs("c:1", "0.40.0"), "each release is read once"
    assert facts.knows(dialects.CHAT, "reasoning")


def test_nothing_is_asked_of_engines_before_it_matters_and_few_old_schemas_are_kept() -> None:
    facts = EngineFacts()
    assert not facts.lacks_schema("a:1")
    assert not facts.lacks_choices("a:1")
    facts.knows(dialects.CHAT, "reasoning")
    assert facts.lacks_schema("a:1")
    assert not facts.lacks_choices("a:1")
    for n in range(100):
        facts.learn_schema("a:1", f"dev{n}", SCHEMA)
    assert len(facts._schemas) < 20
    assert facts.schema_versions == ["dev99"]
    facts.learn_schema("b:1", "other", None)
    assert not facts.lacks_schema("b:1")


# ---- choices of tools -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auto", "none", "required", "named", "shown"),
    [
        (79, 79, 79, 79, "SSS"),
        (79, 13, 79, 79, "LSS"),
        (None, 13, None, None, "L--"),
        (None, 79, None, None, "S--"),
        (79, 79, 85, 90, "SUU"),
        (79, 60, 79, None, "US-"),
        (13, 13, 13, 13, "SSS"),  # a template that shows no tools
        (None, None, None, None, "---"),
    ],
)
def test_lengths_show_what_a_choice_does(
    auto: int | None, none: int | None, required: int | None, named: int | None, shown: str
) -> None:
    counts = {"auto": auto, "none": none, "required": required, "named": named, "no tools": 13}
    assert counts.keys() == questions("tiny").keys()
    found = judge(counts)
    assert "".join(found[choice].name[0] if choice in found else "-" for choice in Choice) == shown
    assert judge(counts | {"no tools": None}) == {}


def test_engines_must_agree_about_a_choice() -> None:
    assert together([]) is Tools.SHOWN
    assert together([Tools.LEFT_OUT] * 2) is Tools.LEFT_OUT
    assert together([Tools.LEFT_OUT, Tools.SHOWN]) is Tools.UNCLEAR
