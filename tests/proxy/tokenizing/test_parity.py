"""What engines show of a kind of prompts decides who tokenizes it."""

import logging

import pytest

from proxy.tokenizing.parity import KINDS, Difference, Parity, difference, questions

CHAT = frozenset({"chat"})


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1, 2], [1, 2], None),
        (None, [1], None),  # left to engines anyway
        (None, None, None),
        ([], None, None),
        ([1, 2], [1, 3], Difference(1, 2, 3)),
        ([1], [1, 3], Difference(1, None, 3)),
        ([1, 2], [1], Difference(1, 2, None)),
        ([1, 2], None, Difference(0, 1, None)),
    ],
)
def test_the_first_token_that_differs_is_told(
    ours: list[int] | None, theirs: list[int] | None, expected: Difference | None
) -> None:
    assert difference(ours, theirs) == expected


def test_nothing_is_agreed_before_an_engine_was_asked_about_the_model() -> None:
    parity = Parity()
    assert not parity.agreed("tiny", CHAT)
    parity.learn("a:1", "tiny", {})
    assert parity.agreed("tiny", CHAT)
    assert not parity.agreed("alpha", CHAT)


def test_one_engine_that_differs_is_enough_until_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    parity = Parity()
    parity.learn("a:1", "tiny", {})
    with caplog.at_level(logging.WARNING):
        parity.learn("b:1", "tiny", {"tools": Difference(3, 7, None)})
        parity.learn("c:1", "tiny", {"tools": Difference(3, 7, None)})
    assert len(caplog.records) == 1
    assert "token 3: 7 here, none there" in caplog.text
    assert parity.agreed("tiny", CHAT)
    assert not parity.agreed("tiny", CHAT | {"tools"})
    assert parity.off == {"tools": "c:1"}
    parity.keep({("a:1", "tiny")})
    assert parity.agreed("tiny", CHAT | {"tools"})
    assert parity.checked == ["a:1"]


def test_awkward_questions_have_special_tokens_in_their_text() -> None:
    asked = questions(["<|x|>"])
    assert asked.keys() == KINDS
    assert any("<|x|>" in str(question) for question in asked["completion"])
    assert any("<|x|>" in str(question) for question in asked["chat"])
