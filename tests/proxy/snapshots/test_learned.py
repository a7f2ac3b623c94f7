"""What was learned is kept for each model apart, and what cannot be written now is written later."""

import pathlib
from typing import Any

import pytest

from proxy.snapshots.directory import StateDirectory
from proxy.snapshots.learned import FileKeeper, KeptFile
from tests.helpers.service import wait_until


class Learned:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def state(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def restore(self, value: Any) -> None:
        self.value = value


def keeper(directory: StateDirectory, model: str, learned: Learned, interval_s: float = 60.0) -> FileKeeper:
    return FileKeeper(
        KeptFile.learned(directory, model),
        state=learned.state,
        restore=learned.restore,
        interval_s=interval_s,
    )


@pytest.mark.parametrize("other", ["b", "a/b", "a" * 300, "\udcff"])
async def test_each_model_has_its_own(tmp_path: pathlib.Path, other: str) -> None:
    directory = StateDirectory(tmp_path / "state")
    for model, value in (("a", 1), (other, 2), ("a", 3)):
        learned = Learned()
        made = keeper(directory, model, learned)
        assert (made.restored, learned.value) == (value == 3, 1 if value == 3 else None)
        learned.value = value
        await made.close()
    found = Learned()
    assert keeper(directory, other, found).restored
    assert found.value == 2
    directory.close()


@pytest.mark.parametrize(
    "value", [object(), ValueError("no"), {1: 2, "1": object()}, OSError(5, "I/O error")]
)
async def test_what_cannot_be_written_ends_no_task(
    tmp_path: pathlib.Path, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    directory, learned = StateDirectory(tmp_path / "state"), Learned(value)
    made = keeper(directory, "m", learned, 0.001)
    made.start()
    await wait_until(lambda: "cannot be written" in caplog.text, "the words")
    learned.value = {"a": 1}
    await wait_until(lambda: directory.read_learned("m") == b'{"a":1}', "the file")
    await made.close()
    assert caplog.text.count("cannot be written") == 1
    directory.close()


def test_what_a_process_left_that_was_killed_is_removed(tmp_path: pathlib.Path) -> None:
    at = tmp_path / "state"
    StateDirectory(at).close()
    left, kept = at / "learned.a%2Fb.json.tmp", at / "mine.json.tmp"
    for file in (left, kept):
        file.write_text("half")
    StateDirectory(at).close()
    assert (left.exists(), kept.exists()) == (False, True)
