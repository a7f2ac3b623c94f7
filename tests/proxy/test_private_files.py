"""Key files that others may write end the start with one line; those that others may read are warned of."""

import pathlib

import pytest

from proxy.config import Config, Security
from proxy.edge import app
from proxy.errors import ConfigError
from proxy.private_files import check_key_file
from tests.helpers.certificates import Authority

FLAGS = ("--api-key-file", "--engine-api-key-file")


def _security(flag: str, file: pathlib.Path) -> Security:
    return Security(api_key_file=file) if flag == "--api-key-file" else Security(engine_api_key_file=file)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o660, 0o666])
def test_a_key_file_that_others_may_write(flag: str, mode: int, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice sk-alice")
    file.chmod(mode)
    config = Config(model="tiny", security=_security(flag, file))
    with pytest.raises(
        ConfigError, match=rf"^{flag} .*keys: others .* may write it \(mode {mode:o}\): chmod"
    ):
        app.create_app(config)
    file.chmod(0o600)
    app.create_app(config)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_key_file_that_others_can_read_is_warned_of(
    flag: str, mode: int, warned: bool, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("alice sk-alice")
    file.chmod(mode)
    app.create_app(Config(model="tiny", security=_security(flag, file)))
    assert (f"{flag} {file} can be read by others" in caplog.text) is warned


def test_a_key_of_tls_that_others_may_write(tmp_path: pathlib.Path) -> None:
    files = Authority(tmp_path).certify("localhost")
    files.key.chmod(0o660)
    security = Security(tls_cert=files.cert, tls_key=files.key)
    with pytest.raises(ConfigError, match=r"^--tls-key .*others .* may write it \(mode 660\)"):
        app.create_runner(Config(model="tiny", security=security))
    files.key.chmod(0o600)
    app.create_runner(Config(model="tiny", security=security))


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o770, True), (0o1777, False), (0o755, False)])
def test_a_key_file_that_others_may_replace(mode: int, refused: bool, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "keys"
    file.write_text("alice sk-alice")
    file.chmod(0o600)
    folder.chmod(mode)
    if refused:
        with pytest.raises(ConfigError, match="may write the directory it is in"):
            check_key_file("--api-key-file", file)
    else:
        check_key_file("--api-key-file", file)


def test_a_key_file_behind_a_link_is_what_the_link_names(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice sk-alice")
    file.chmod(0o620)
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(ConfigError, match="may write it"):
        check_key_file("--api-key-file", link)
    file.unlink()
    with pytest.raises(ConfigError, match=r"--api-key-file .*link: No such file"):
        check_key_file("--api-key-file", link)
