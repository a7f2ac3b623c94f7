"""Columns of a CSV file are found by their names, wherever they stand: published files insert new ones."""

import csv
import pathlib
from collections.abc import Iterator, Sequence

from proxy.errors import TraceError
from proxy.traces.blocks import MAX_TOKENS
from proxy.traces.files import fault, lines


class Row:
    """One row: numbers by the name of their column."""

    def __init__(self, path: pathlib.Path, line: int, cells: dict[str, str]) -> None:
        self._path = path
        self.line = line
        self.cells = cells

    def count(self, column: str) -> int:
        """A number of tokens. Raises TraceError."""
        text = self.cells[column]
        try:
            value = int(text)
        except ValueError:
            raise self.fault(column, f"expected a whole number, got {text!r}") from None
        if not 0 <= value <= MAX_TOKENS:
            raise self.fault(column, f"expected 0 to {MAX_TOKENS}, got {value}")
        return value

    def fault(self, column: str, what: str) -> TraceError:
        """The error of a cell."""
        return fault(self._path, self.line, f"{column}: {what}")


def columns_of(header: bytes) -> list[str]:
    """The names in a line that may be the header of a CSV file."""
    try:
        return [name.strip() for name in next(csv.reader([header.decode()]), [])]
    except (csv.Error, UnicodeDecodeError):
        return []


def rows(path: pathlib.Path, needed: Sequence[str]) -> Iterator[Row]:
    """The rows below the header. Raises TraceError, also if a needed column is missing."""
    names: list[str] | None = None
    for number, line in lines(path):
        if names is None:
            names = columns_of(line)
            if missing := [name for name in needed if name not in names]:
                raise fault(path, number, f"the header has no column {', '.join(missing)}")
            continue
        try:
            cells = next(csv.reader([line.decode()], strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise fault(path, number, f"not CSV: {error}") from None
        if len(cells) != len(names):
            raise fault(path, number, f"{len(cells)} cells, but the header names {len(names)}")
        yield Row(path, number, dict(zip(names, cells, strict=True)))
