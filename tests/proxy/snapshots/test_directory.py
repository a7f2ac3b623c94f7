"""A state directory that cannot be used is refused at once, and what lies in it is never trusted more than
its bytes."""

import os
import pathlib
import stat
from collections.abc import Iterator

import pytest

from proxy.errors import ConfigError
from proxy.snapshots.directory import MAX_BROKEN, StateDirectory, UnusableFileError

ONE, OTHER = "10.0.0.1:8100", "[2001:db8::1]:8100"


@pytest.fixture
def at(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "state"


@pytest.fixture
def directory(at: pathlib.Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(at)
    yield directory
    directory.close()


def names(at: pathlib.Path) -> set[str]:
    return {path.name for path in at.iterdir()} - {"lock", "secret"}


def test_the_directory_is_made_for_its_owner_alone(at: pathlib.Path, directory: StateDirectory) -> None:
    directory.write(ONE, 0, b"data")
    assert stat.S_IMODE(at.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in at.iterdir()} == {0o600}


def test_snapshots_that_were_written_are_read_by_the_next_process(at: pathlib.Path) -> None:
    first = StateDirectory(at)
    first.write(ONE, 0, b"before")
    first.write(ONE, 0, b"after")
    first.write(OTHER, 12, b"")
    first.close()
    second = StateDirectory(at)
    assert second.secret == first.secret
    assert len(set(second.secret)) > 8
    assert second.read(ONE, 0) == b"after"
    assert second.read(OTHER, 12) == b""
    assert second.read(ONE, 1) is None
    assert len(names(at)) == 2
    second.close()


def test_a_second_kvproxy_is_refused(at: pathlib.Path, directory: StateDirectory) -> None:
    with pytest.raises(ConfigError, match=rf"another kvproxy uses it \(process {os.getpid()}\)"):
        StateDirectory(at)
    directory.close()
    StateDirectory(at).close()


@pytest.mark.parametrize("name", ["h" * 240 + ":8100", "a.rank1.snapshot:1", "a%3A1", "a/b:1", "..:1"])
def test_any_name_of_an_instance_is_a_file_of_its_own(
    at: pathlib.Path, directory: StateDirectory, name: str
) -> None:
    directory.write("a:1", 0, b"another's")
    directory.write(name, 0, b"mine")
    assert directory.read(name, 0) == b"mine"
    assert len(names(at)) == 2
    directory.remove(name)
    assert directory.read(name, 0) is None
    assert directory.read("a:1", 0) == b"another's"


def test_an_instance_that_left_is_forgotten_and_no_other(at: pathlib.Path, directory: StateDirectory) -> None:
    for instance in (ONE, ONE + "1", OTHER):
        for rank in (0, 1, 10):
            directory.write(instance, rank, b"")
    directory.set_aside(ONE, 10)
    directory.remove(ONE, 1)
    assert directory.read(ONE, 0) == b""
    directory.remove(ONE)
    assert [directory.read(ONE, rank) for rank in (0, 1, 10)] == [None] * 3
    assert [directory.read(ONE + "1", rank) for rank in (0, 1, 10)] == [b""] * 3
    assert directory.remove_others({OTHER}) == 3
    assert directory.remove_others({OTHER}) == 0
    assert directory.read(OTHER, 10) == b""
    assert len(names(at)) == 4


def test_files_set_aside_are_kept_in_a_bounded_number(at: pathlib.Path, directory: StateDirectory) -> None:
    for number in range(MAX_BROKEN + 5):
        directory.write(ONE, number, str(number).encode())
        aside = directory.set_aside(ONE, number)
        assert (at / aside).read_bytes() == str(number).encode()
    kept = {path.read_text() for path in at.glob("*.broken-*")}
    assert kept == {str(number) for number in range(5, MAX_BROKEN + 5)}


def test_files_that_a_killed_process_left_half_written_are_removed(at: pathlib.Path) -> None:
    first = StateDirectory(at)
    first.write(ONE, 0, b"whole")
    first.close()
    [file] = at.glob("*.snapshot")
    file.with_name(file.name + ".tmp").write_bytes(b"ha")
    (at / "notes.txt").write_text("an operator's")
    second = StateDirectory(at)
    assert names(at) == {file.name, "notes.txt"}
    assert second.read(ONE, 0) == b"whole"
    second.close()


def test_a_write_that_fails_leaves_what_was_there(
    at: pathlib.Path, directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write(ONE, 0, b"before")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            directory.write(ONE, 0, b"after")
    assert directory.read(ONE, 0) == b"before"
    assert len(names(at)) == 1
    directory.write(ONE, 0, b"after")
    assert directory.read(ONE, 0) == b"after"


def test_what_is_no_file_is_not_read(at: pathlib.Path, directory: StateDirectory) -> None:
    directory.write(ONE, 0, b"")
    [file] = at.glob("*.snapshot")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UnusableFileError):
        directory.read(ONE, 0)
    file.unlink()
    file.symlink_to(at / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        directory.read(ONE, 0)
    directory.write(ONE, 0, b"again")
    assert directory.read(ONE, 0) == b"again"
    assert (at / "secret").read_bytes() == directory.secret


# ---- refused at the start ----------------------------------------------------------------------------------


def test_a_missing_parent(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"--state-dir .*state: the directory above it does not exist"):
        StateDirectory(tmp_path / "missing" / "state")


@pytest.mark.parametrize("below", ["", "state"])
def test_no_directory(tmp_path: pathlib.Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="it is not a directory"):
        StateDirectory(tmp_path / "file" / below)


def test_a_directory_on_a_disk_that_cannot_be_written_to() -> None:
    with pytest.raises(ConfigError, match=r"it cannot be (made|written to)"):
        StateDirectory(pathlib.Path("/proc/self"))


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_may_write(at: pathlib.Path, mode: int) -> None:
    at.mkdir()
    at.chmod(mode)
    with pytest.raises(
        ConfigError, match=rf"--state-dir .*others .* may write it \(mode {mode:o}\): chmod go-w"
    ):
        StateDirectory(at)
    assert not list(at.iterdir())
    at.chmod(0o755)
    StateDirectory(at).close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_secret_that_is_open_to_others(at: pathlib.Path, mode: int) -> None:
    StateDirectory(at).close()
    (at / "secret").chmod(mode)
    with pytest.raises(ConfigError, match=rf"secret is open to others .*mode {mode:o}\): chmod 600 it"):
        StateDirectory(at)
    (at / "secret").chmod(0o600)
    StateDirectory(at).close()  # the one that was refused has let it go


def test_a_secret_of_another_owner(at: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StateDirectory(at).close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match=rf"secret belongs to user {os.getuid()}, and kvproxy runs as user"):
        StateDirectory(at)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_secret_that_is_none(at: pathlib.Path, content: bytes) -> None:
    StateDirectory(at).close()
    (at / "secret").write_bytes(content)
    with pytest.raises(ConfigError, match="secret is not a secret that kvproxy made: remove it"):
        StateDirectory(at)
    assert (at / "secret").read_bytes() == content


def test_a_secret_that_is_elsewhere(at: pathlib.Path, tmp_path: pathlib.Path) -> None:
    StateDirectory(at).close()
    (at / "secret").rename(tmp_path / "elsewhere")
    (at / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"secret cannot be read: .*mode 600"):
        StateDirectory(at)


def test_a_secret_half_made_is_made_anew(at: pathlib.Path) -> None:
    at.mkdir()
    (at / "secret.tmp").write_bytes(b"half")
    StateDirectory(at).close()
    assert {path.name for path in at.iterdir()} == {"lock", "secret"}


def test_instances_are_one_file_written_whole(at: pathlib.Path, directory: StateDirectory) -> None:
    assert directory.read_instances() is None
    directory.write_instances(b"before")
    directory.write_instances(b"after")
    assert directory.read_instances() == b"after"
    assert names(at) == {"instances.json"}
    assert stat.S_IMODE((at / "instances.json").stat().st_mode) == 0o600
    directory.remove_others([])  # which is about snapshots
    assert directory.read_instances() == b"after"
    aside = directory.set_instances_aside()
    assert names(at) == {aside}
    directory.close()
    (at / "instances.json.tmp").write_bytes(b"of a process that was killed while it wrote")
    StateDirectory(at).close()
    assert names(at) == {aside}


def test_what_takes_the_place_of_instances_is_not_read(at: pathlib.Path, directory: StateDirectory) -> None:
    (at / "elsewhere").write_bytes(b"{}")
    (at / "instances.json").symlink_to(at / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        directory.read_instances()
    (at / "instances.json").unlink()
    os.mkfifo(at / "instances.json")
    with pytest.raises(UnusableFileError, match="not a file"):
        directory.read_instances()
