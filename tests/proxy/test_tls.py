"""TLS contexts are made of usable files only, and each error names the flag and the remedy."""

import pathlib

import pytest

from proxy.cli.main import main
from proxy.errors import ConfigError
from proxy.tls import server_context
from tests.helpers.certificates import Authority


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path)


def wrong_files(folder: pathlib.Path) -> dict[str, tuple[str, list[str]]]:
    authority = Authority(folder)
    good = authority.certify("127.0.0.1")
    other = authority.certify("127.0.0.1", file="other")
    locked = authority.certify("127.0.0.1", file="locked", passphrase=b"secret")
    nonsense = folder / "nonsense"
    nonsense.write_text("nonsense")
    nobody = folder / "nobody"
    return {
        "no certificate there": ("--tls-cert", ["--tls-cert", str(nobody), "--tls-key", str(good.key)]),
        "no key there": ("--tls-key", ["--tls-cert", str(good.cert), "--tls-key", str(nobody)]),
        "no certificate in it": ("--tls-cert", ["--tls-cert", str(nonsense), "--tls-key", str(good.key)]),
        "no key in it": ("--tls-key", ["--tls-cert", str(good.cert), "--tls-key", str(nonsense)]),
        "another's key": ("--tls-key", ["--tls-cert", str(good.cert), "--tls-key", str(other.key)]),
        "a passphrase": ("--tls-key", ["--tls-cert", str(locked.cert), "--tls-key", str(locked.key)]),
        "swapped": ("--tls-cert", ["--tls-cert", str(good.key), "--tls-key", str(good.cert)]),
        "one alone": ("--tls-key", ["--tls-cert", str(good.cert)]),
        "no authorities there": ("--engine-ca", ["--engine-ca", str(nobody)]),
        "no authorities in it": ("--engine-ca", ["--engine-ca", str(nonsense)]),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no certificate there",
        "no key there",
        "no certificate in it",
        "no key in it",
        "another's key",
        "a passphrase",
        "swapped",
        "one alone",
        "no authorities there",
        "no authorities in it",
    ],
)
def test_a_wrong_file_ends_the_start_with_its_flag(
    case: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag, arguments = wrong_files(tmp_path)[case]
    with pytest.raises(SystemExit) as ended:
        main(["serve", "-m", "tiny", "-p", "127.0.0.1:1", "-d", "127.0.0.1:2", "--port", "0", *arguments])
    assert ended.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kvproxy: ")]
    assert flag in line


def test_no_passphrase_is_asked_for(authority: Authority) -> None:
    with pytest.raises(ConfigError, match="has a passphrase; write one without"):
        server_context(*authority.certify("127.0.0.1", passphrase=b"secret"))
