"""Without one of the keys nothing is served, with one the client's name is known, and the key goes no
further.
"""

import hashlib
import hmac
import pathlib

import pytest

from proxy.edge.access import client_keys
from proxy.edge.access.client_keys import ClientKeys
from proxy.errors import ConfigError

FILE = """\
# keys of the clients

alice  sk-alice-1
bob\tsk-bob
alice sk-alice-2
"""


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Bearer sk-alice-1", "alice"),
        ("Bearer sk-alice-2", "alice"),
        ("bearer sk-bob", "bob"),
        ("BEARER sk-bob", "bob"),
        ("Bearer sk-bo", None),
        ("Bearer sk-bobb", None),
        ("Bearer SK-BOB", None),
        ("Bearer  sk-bob", None),
        ("Bearer sk-bob ", None),
        ("Bearer ", None),
        ("Bearer", None),
        ("", None),
        (None, None),
        ("sk-bob", None),
        ("Basic sk-bob", None),
        ("Bearer bob", None),
        ("Bearer bob sk-bob", None),
        ("Bearer caf\u00e9\udcff", None),
    ],
)
def test_a_key_tells_whose_it_is(header: str | None, name: str | None) -> None:
    assert ClientKeys.parse(FILE).name_of(header) == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key"),
        ("# only words\n", "no key"),
        ("alice\n", "line 1"),
        ("alice secret more\n", "line 1"),
        ("\nali/ce secret\n", "line 2"),
        (f"{'a' * 65} secret\n", "line 1"),
        ("alice s\u00e9cret\n", "line 1"),
        ("alice s\x07ecret\n", "line 1"),
        ("alice secret\nbob secret\n", "line 2"),
    ],
)
def test_a_wrong_line_is_named_and_its_key_is_not(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        ClientKeys.parse(text)
    assert str(error.value).startswith("--api-key-file")
    assert "cret" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"--api-key-file .*: No such file"):
        ClientKeys.read(tmp_path / "none")
    binary = tmp_path / "binary"
    binary.write_bytes(b"alice \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        ClientKeys.read(binary)


@pytest.mark.parametrize("header", ["Bearer sk-7", "Bearer sk-9999", "Bearer wrong", "Basic sk-7", None])
def test_however_many_keys_there_are_one_is_compared(
    header: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return hmac.compare_digest(given, known)

    keys = ClientKeys.parse("\n".join(f"client{n} sk-{n}" for n in range(10_000)))
    monkeypatch.setattr(client_keys, "hmac", type("Spied", (), {"compare_digest": staticmethod(compare)}))
    keys.name_of(header)
    assert len(compared) == 1
    assert len(compared[0][0]) == len(compared[0][1])


def test_nobody_outside_knows_where_in_the_table_a_key_is() -> None:
    one, other = ClientKeys.parse(FILE), ClientKeys.parse(FILE)
    assert not set(one._known) & set(other._known)
    assert hashlib.sha256(b"sk-bob").digest() not in one._known
