"""Sources and operators say in turn which instances they want; the roster says which are wanted."""

import pytest

from proxy.config import parse_instance
from proxy.phases import Role
from proxy.watching.membership.roster import Roster, Wish

DECODE = Wish(parse_instance("a:1", Role.DECODE))
PREFILL = Wish(parse_instance("a:1", Role.PREFILL))

FLAGS, DNS, OPERATORS = "flags", "dns", "operators"


class Told:
    """A roster that is told in words."""

    def __init__(self) -> None:
        self.roster = Roster()

    def say(self, words: str) -> bool | None:
        """`dns wants decode`, `dns drops`, `operators strike`."""
        source, what, *role = words.split()
        if what == "wants":
            return self.roster.want(source, {"decode": DECODE, "prefill": PREFILL}[role[0]])
        if what == "drops":
            return self.roster.drop(source, "a:1")
        self.roster.strike("a:1", by=source)
        return None


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ([], None),
        (["dns wants decode"], DECODE),
        (["dns wants decode", "dns drops"], None),
        (["dns wants decode", "dns drops", "dns wants prefill"], PREFILL),
        (["dns wants decode", "flags drops"], DECODE),
        (["flags wants prefill", "dns wants decode"], PREFILL),
        (["flags wants prefill", "dns wants decode", "flags drops"], DECODE),
        (["dns wants decode", "operators strike"], None),
        (["dns wants decode", "operators strike", "dns wants decode"], None),
        (["dns wants decode", "operators strike", "dns drops", "dns wants decode"], DECODE),
        (["dns wants decode", "operators strike", "flags wants prefill"], PREFILL),
        (["dns wants decode", "operators strike", "operators wants prefill", "dns drops"], PREFILL),
        (["operators wants decode", "operators strike", "operators wants decode"], DECODE),
    ],
)
def test_an_instance_is_wanted_while_a_wish_for_it_counts(said: list[str], wanted: Wish | None) -> None:
    told = Told()
    for words in said:
        told.say(words)
    assert told.roster.wish("a:1") == wanted
    assert told.roster.wish("b:1") is None


def test_repeating_a_wish_is_no_news_and_dropping_what_was_not_wanted_is_nothing() -> None:
    told = Told()
    assert not told.say("dns drops")
    assert told.say("dns wants decode")
    assert not told.say("dns wants decode")
    told.say("operators strike")
    assert not told.say("dns wants decode")
    assert told.say("dns drops")
    assert not told.say("dns drops")
    assert told.roster._wishes == {}
