"""The files of a recording are bounded in size and number, and never continued by another process."""

import pathlib

import pytest

from proxy.errors import ConfigError
from proxy.observability.record_files import RecordFiles, file_named


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: pathlib.Path, most_bytes: int = 10, most_files: int = 3) -> RecordFiles:
    return RecordFiles(folder / "traffic.jsonl", most_bytes, most_files)


def test_lines_are_added_until_a_file_is_full(tmp_path: pathlib.Path) -> None:
    written = files(tmp_path)
    for number in range(5):
        written.write([b"%d..\n" % number])
    written.close()
    assert names(tmp_path) == ["traffic.000001.jsonl", "traffic.000002.jsonl", "traffic.jsonl"]
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)] == [
        b"0..\n1..\n",
        b"2..\n3..\n",
        b"4..\n",
    ]


def test_the_oldest_go(tmp_path: pathlib.Path) -> None:
    (tmp_path / "traffic.1.jsonl").write_text("not one of ours")
    written = files(tmp_path)
    for number in range(12):
        written.write([b"%08d\n" % number])
    assert names(tmp_path) == [
        "traffic.000010.jsonl",
        "traffic.000011.jsonl",
        "traffic.1.jsonl",
        "traffic.jsonl",
    ]
    assert (tmp_path / "traffic.jsonl").read_bytes() == b"00000011\n"


def test_one_file_may_be_all(tmp_path: pathlib.Path) -> None:
    written = files(tmp_path, most_files=1)
    for number in range(3):
        written.write([b"%08d\n" % number])
    assert names(tmp_path) == ["traffic.jsonl"]


def test_what_another_process_wrote_is_put_aside(tmp_path: pathlib.Path) -> None:
    for number in range(2):
        files(tmp_path, most_bytes=100).write([b"%d\n" % number])
    assert (tmp_path / "traffic.000001.jsonl").read_bytes() == b"0\n"
    assert (tmp_path / "traffic.jsonl").read_bytes() == b"1\n"


def test_a_batch_larger_than_a_file_is_written_whole(tmp_path: pathlib.Path) -> None:
    files(tmp_path).write([b"x" * 50 + b"\n"])
    assert (tmp_path / "traffic.jsonl").stat().st_size == 51


def test_only_its_owner_may_read_it(tmp_path: pathlib.Path) -> None:
    files(tmp_path).write([b"x\n"])
    assert (tmp_path / "traffic.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_name_without_an_ending_will_do(tmp_path: pathlib.Path) -> None:
    written = RecordFiles(tmp_path / "traffic", 1, 3)
    for _ in range(2):
        written.write([b"x\n"])
    assert names(tmp_path) == ["traffic", "traffic.000001"]


def test_what_cannot_be_written_leaves_no_half_a_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    written, write = files(tmp_path, most_bytes=100), os.write
    written.write([b"whole\n"])

    def full(file: int, data: bytes) -> int:
        if len(data) <= 4:
            raise OSError(28, "No space left on device")
        return write(file, data[:4])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        written.write([b"cut off\n"])
    monkeypatch.undo()
    written.write([b"later\n"])
    assert (tmp_path / "traffic.jsonl").read_bytes() == b"whole\nlater\n"


@pytest.mark.parametrize(
    ("name", "why"),
    [("missing/traffic.jsonl", "there is no directory .*missing"), ("folder", "folder is no file")],
)
def test_a_place_that_will_not_do_is_refused_at_the_start(
    name: str, why: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=f"--record .*{why}"):
        RecordFiles(tmp_path / name, 1, 1).check()
    files(tmp_path).check()
    assert names(tmp_path) == ["folder"]


def test_a_place_that_cannot_be_written_to_is_refused_at_the_start(tmp_path: pathlib.Path) -> None:
    """Not only where the mode of the directory says so, which a superuser need not heed."""
    longest = "x" * 249 + ".jsonl"
    for place in (pathlib.Path("/proc/self/traffic.jsonl"), tmp_path / longest):
        with pytest.raises(ConfigError, match=r"--record .*cannot be written to"):
            RecordFiles(place, 1, 1).check()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["traffic", "traffic.jsonl"])
def test_names_end_so_that_a_folder_can_be_read(name: str) -> None:
    assert file_named("--record", pathlib.Path("deep", name)) == pathlib.Path("deep", "traffic.jsonl")


@pytest.mark.parametrize("name", ["traffic.log", "traffic.jsonl.gz", "traffic.000001"])
def test_a_name_that_ends_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--record {name}: the name must end in .jsonl"):
        file_named("--record", pathlib.Path(name))
