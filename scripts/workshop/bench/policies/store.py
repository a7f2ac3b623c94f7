"""A run that is over is a line of a file; what is asked again is not run again."""

import pathlib
from collections.abc import Iterator

import msgspec

from scripts.workshop.bench.policies.cells import Asked, Got

FILE = "cells.jsonl"
_decode = msgspec.json.Decoder(Got).decode
_encode = msgspec.json.Encoder().encode


class Store:
    """The runs of one folder. The last line of a cell counts."""

    def __init__(self, folder: pathlib.Path, again: frozenset[str] = frozenset()) -> None:
        """`again`: policies whose earlier runs do not count, as their code has changed."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._known: dict[Asked, Got] = {}
        if self._path.exists():
            for line in self._path.read_bytes().splitlines():
                try:
                    got = _decode(line)
                except msgspec.MsgspecError:
                    continue  # the last line of a run that was killed
                if got.asked.policy.partition("-")[0] not in again:
                    self._known[got.asked] = got

    def get(self, asked: Asked) -> Got | None:
        """What came out, if it was run."""
        return self._known.get(asked)

    def add(self, got: Got) -> None:
        """It is over."""
        self._known[got.asked] = got
        with self._path.open("ab") as file:
            file.write(_encode(got) + b"\n")

    def __iter__(self) -> Iterator[Got]:
        """All that are over."""
        return iter(self._known.values())
