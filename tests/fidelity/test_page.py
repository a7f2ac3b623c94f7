"""The page says what the matrix says."""

import pathlib

import pytest

from tests.fidelity.matrix import FEATURES, cells
from tests.fidelity.page import main

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "fidelity.md"


def test_the_page_is_made_of_the_matrix(tmp_path: pathlib.Path) -> None:
    assert main(["--check", str(PAGE)]) == 0, "run: python -m tests.fidelity.page docs/fidelity.md"
    other = tmp_path / "fidelity.md"
    other.write_text(PAGE.read_text(encoding="utf-8") + "more")
    assert main(["--check", str(other)]) == 1
    assert main([str(other)]) == 0
    assert other.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("what", [[cell.name for cell in cells()], [feature.name for feature in FEATURES]])
def test_each_cell_has_a_name_of_its_own(what: list[str]) -> None:
    assert len(set(what)) == len(what)
