"""Names are found as by one alternation of them all, the longest first, and each place is looked at once."""

import re
from re import _constants, _parser  # type: ignore[attr-defined, unused-ignore]  # what a pattern is compiled from
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.tokenizing.local.names import pattern_of

LETTERS = st.text(alphabet="ab<|>?*+()[]{}.^$\\- \n#&~é漢😀\u0301", min_size=1, max_size=6)
NAMES = st.lists(LETTERS, min_size=1, max_size=30)


@settings(max_examples=400, deadline=None, database=None)
@given(NAMES, st.data())
@example(["a", "ab", "abcd", "abce", "b"], None)
def test_what_is_found_is_what_the_longest_first_would_find(names: list[str], data: Any) -> None:
    plain = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    parts = st.lists(st.sampled_from([*names, *(name[:-1] for name in names)]) | LETTERS, max_size=30)
    text = "abcabcdabceabbab" if data is None else "".join(data.draw(parts))
    found = [match.span() for match in pattern_of(names).finditer(text)]
    assert found == [match.span() for match in plain.finditer(text)]


def alternatives(parsed: Any) -> int:
    """The most that are tried at one place of a text: of the largest groups within each other."""
    most = 0
    for op, of in parsed:
        if op is _constants.BRANCH:
            most = max(most, len(of[1]) + max(map(alternatives, of[1])))
        elif op is _constants.SUBPATTERN:
            most = max(most, alternatives(of[3]))
        elif op is _constants.MAX_REPEAT:
            most = max(most, alternatives(of[2]))
    return most


@pytest.mark.parametrize("count", [10, 256, 6000])
@pytest.mark.parametrize("name", ["<|reserved_special_token_{}|>", "<unused{}>", "<place▁holder▁no▁{}>"])
def test_many_names_are_no_more_work_than_few(name: str, count: int) -> None:
    names = [name.format(number) for number in range(count)]
    pattern = pattern_of([*names, "<pad>", "<|begin|>", "[MULTIMODAL]"])
    assert alternatives(_parser.parse(pattern.pattern)) <= 60
    assert all(pattern.fullmatch(one) for one in names)
    assert pattern.search(names[-1][:-1]) is None


def test_names_that_all_begin_with_one_another_are_found() -> None:
    names = ["a" * length for length in range(1, 1001)]
    pattern = pattern_of(names)
    assert [len(found) for found in pattern.findall("b".join(names))] == list(range(1, 1001))
