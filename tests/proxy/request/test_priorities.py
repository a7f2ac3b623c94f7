"""Priorities are read as engines read them, and no client claims a better one than it may."""

import json
from typing import Any

import pytest

from proxy.config import Admission
from proxy.errors import ConfigError
from proxy.request import dialects
from proxy.request.generation import GenerationRequest, read_request
from proxy.request.priorities import bounded, claimed


def read(members: dict[str, Any]) -> GenerationRequest:
    return read_request(dialects.COMPLETIONS, json.dumps({"prompt": "hi"} | members).encode(), "tiny")


@pytest.mark.parametrize(
    ("header", "member", "priority"),
    [
        (None, {}, 0),
        (None, {"priority": 3}, 3),
        (None, {"priority": "-3"}, -3),  # as pydantic reads it
        (None, {"priority": 2.0}, 2),
        (None, {"priority": 2.5}, 0),  # which engines refuse
        (None, {"priority": "x"}, 0),
        (None, {"priority": None}, 0),
        ("-7", {}, -7),
        ("-7", {"priority": 3}, -7),
        (" +1_0 ", {"priority": 3}, 10),  # as Python's int
        ("0", {"priority": 3}, 0),
        ("", {"priority": 3}, 3),
        ("1.0", {"priority": 3}, 3),
        ("high", {"priority": 3}, 3),
        ("\u0663", {"priority": 4}, 4),
        ("9" * 5000, {"priority": 3}, 3),
        ("\udca0-9", {"priority": 3}, -9),  # a space of Latin-1
    ],
)
def test_priorities_are_read_as_vllm_reads_them(
    header: str | None, member: dict[str, Any], priority: int
) -> None:
    assert claimed(read(member), header) == priority


ABSENT = object()


@pytest.mark.parametrize(
    ("member", "header", "least", "sent"),
    [
        (-5, None, 0, (0, None)),
        (5, None, 0, (5, None)),
        (-5, None, -3, (-3, None)),
        ("-5", None, 0, (0, None)),
        (-(10**30), None, 0, (0, None)),
        (ABSENT, None, 0, (ABSENT, None)),
        (ABSENT, None, 3, (3, None)),  # who says nothing claims 0
        (ABSENT, None, -3, (ABSENT, None)),
        (None, None, 3, (None, None)),  # which engines refuse
        ([1], None, 3, ([1], None)),
        (0, "-5", 0, (0, "0")),
        (-5, "5", 0, (0, "5")),  # for engines that do not know the header
        (0, " -5 ", 0, (0, "0")),
        (0, "\udca0-5", 0, (0, "0")),
        (0, "soon", 0, (0, "soon")),
        (-5, "soon", 0, (0, "soon")),
        (7, "7", 0, (7, "7")),
    ],
)
def test_what_engines_are_told_is_no_better_than_a_client_may_claim(
    member: Any, header: str | None, least: int, sent: tuple[Any, str | None]
) -> None:
    request = read({} if member is ABSENT else {"priority": member})
    headers = [("X-Other", "1")] + ([] if header is None else [("x-vllm-PRIORITY", header)])
    told, kept = bounded(request, headers, least)
    body = json.loads(told.body.encoded())
    assert body.get("priority", ABSENT) == sent[0]
    assert dict(kept) == {"X-Other": "1"} | ({} if sent[1] is None else {"x-vllm-PRIORITY": sent[1]})


def test_all_headers_of_the_name_are_bounded() -> None:
    _, kept = bounded(read({}), [("X-Vllm-Priority", "3"), ("X-Vllm-Priority", "-3")], 0)
    assert [value for _, value in kept] == ["3", "0"]


def test_a_bound_that_engines_would_not_take_ends_the_start() -> None:
    with pytest.raises(ConfigError, match="--max-client-priority"):
        Admission(max_client_priority=1 << 63)
