"""Ids are many, look alike, and none comes twice."""

import re

import pytest

from proxy.edge.ids import ID_CHARS, Ids, new_id
from proxy.edge.visit import Visit


def test_no_id_comes_twice() -> None:
    """Nor do two processes draw the same."""
    one, other = Ids(), Ids()
    drawn = [ids.draw() for _ in range(1000) for ids in (one, other)]
    assert len({*drawn}) == len(drawn)
    assert all(re.fullmatch(rf"[0-9a-f]{{{ID_CHARS}}}", each) for each in drawn)
    assert new_id() != new_id()


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 257, "caf\u00e9", "line\nbreak"])
def test_a_request_is_named_here_where_its_client_has_no_name_that_can_be_used(given: str | None) -> None:
    visit = Visit(given)
    assert visit.is_named_here
    assert len(visit.request_id) == ID_CHARS


@pytest.mark.parametrize("given", ["a", "x" * 256, "urn:uuid:1"])
def test_its_clients_name_is_its_own(given: str) -> None:
    visit = Visit(given)
    assert (visit.request_id, visit.is_named_here) == (given, False)
