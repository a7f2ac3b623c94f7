"""What names the session of a request."""

from typing import Any

import msgspec
import pytest

from proxy.request.body import Body
from proxy.request.sessions import MAX_NAME_BYTES, session_of


def body(**members: Any) -> Body:
    return Body.parse(msgspec.json.encode({"prompt": "x"} | members))


@pytest.mark.parametrize(
    ("header", "members", "session"),
    [
        ("h", {"user": "u", "prompt_cache_key": "k"}, "h"),
        (None, {"user": "u", "prompt_cache_key": "k"}, "k"),
        ("", {"user": "u", "prompt_cache_key": ""}, "u"),
        (None, {"user": "u"}, "u"),
        (None, {"user": "ü\n"}, "ü\n"),
        (None, {}, None),
        (None, {"user": None, "prompt_cache_key": 7}, None),
        (None, {"user": ["u"]}, None),
        (None, {"user": "u" * (MAX_NAME_BYTES - 2)}, "u" * (MAX_NAME_BYTES - 2)),
        (None, {"user": "u" * MAX_NAME_BYTES}, None),
    ],
)
def test_the_first_that_has_a_name_counts(
    header: str | None, members: dict[str, Any], session: str | None
) -> None:
    assert session_of(header, body(**members)) == session


def test_what_engines_have_to_judge_names_no_session() -> None:
    assert session_of(None, Body.parse(b'{"user": "u", "prompt_cache_key": 1e999}')) == "u"
