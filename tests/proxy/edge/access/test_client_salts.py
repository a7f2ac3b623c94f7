"""With --salt-by-client no client finds in a cache what another's prompts left there, and each still finds
its own.
"""

import json
import pathlib
import re

import pytest

from proxy.config import Config, Security
from proxy.edge import app
from proxy.edge.access.client_keys import ClientKeys
from proxy.edge.access.client_salts import ClientSalts, read_own_salt, read_secret
from proxy.errors import BadRequestError, ConfigError

KEYS = "alice sk-alice\nalice sk-alice-2\nbob sk-bob\nann@team sk-ann\nben@team sk-ben\nteam sk-team\n"
SECRET = "a secret of this test, of 32 bytes and more"


@pytest.fixture
def key_file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "keys"
    file.write_text(KEYS)
    file.chmod(0o600)
    return file


# ---- what a salt is made of -------------------------------------------------------------------------------


def salts(secret: bytes = b"s", **groups: str) -> ClientSalts:
    return ClientSalts(secret, groups)


def test_a_salt_is_the_clients_own_and_follows_its_own_words() -> None:
    of = salts(ann="team", ben="team").of
    assert of("alice", None) == of("alice", None) == salts().of("alice", None)
    assert of("ann", None) == of("ben", None)
    assert of("ann", "s") == of("ben", "s")
    others = [
        *[of("alice", own) for own in (None, "s", "s2", "bob")],
        *[of("bob", own) for own in (None, "s", "alice")],
        *[of("ann", own) for own in (None, "s")],
        of("team", None),  # a name is not a group
        of("key", None),
        of("group", "team"),
        of("alices", None),
        salts(b"t").of("alice", None),
    ]
    assert len({*others}) == len(others)


def test_engines_take_every_salt_that_is_made() -> None:
    made = [salts(bytes([n])).of("alice", None) for n in range(200)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{44}", salt) for salt in made)
    assert all(read_own_salt(json.dumps(salt).encode()) == salt for salt in made)


@pytest.mark.parametrize(
    ("raw", "salt"),
    [
        (None, None),
        (b"null", None),
        (b'"s"', "s"),
        (b'"\\u0041"', "A"),
        (b'"' + b"\\ud83d\\ude00" * 128 + b'"', "\U0001f600" * 128),
    ],
)
def test_a_clients_own_salt_is_read_as_engines_read_it(raw: bytes | None, salt: str | None) -> None:
    assert read_own_salt(raw) == salt


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alice@team sk-1\nalice sk-2\n", "line 2: alice is in another group"),
        ("alice sk-1\nalice@team sk-2\n", "line 2: alice is in another group"),
        ("alice@a sk-1\nalice@b sk-2\n", "line 2: alice is in another group"),
        ("alice@ sk-1\n", "line 1: a name"),
        ("@team sk-1\n", "line 1: a name"),
        ("alice@te@am sk-1\n", "line 1: a name"),
        ("alice sk-1 team\n", "line 1: a name and a key"),
    ],
)
def test_a_wrong_group_is_named_by_its_line(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ClientKeys.parse(line)


def test_names_stay_what_they_are_with_a_group_behind_them() -> None:
    keys = ClientKeys.parse(KEYS)
    assert keys.name_of("Bearer sk-ann") == "ann"
    assert keys.groups == {"ann": "team", "ben": "team"}


# ---- the secret, and what is asked of operators -----------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "No such file"),
        (b"", "at least 32 bytes"),
        (b" " * 40 + b"\n", "at least 32 bytes"),
        (b"x" * 31 + b"\n", "at least 32 bytes"),
        (b"x" * 4097, "more than 4096 bytes"),
    ],
)
def test_a_secret_that_is_none_ends_the_start(data: bytes | None, words: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "secret"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConfigError, match=f"--salt-file .*{words}") as error:
        read_secret(file)
    assert "xxx" not in str(error.value)


def test_flags_that_would_do_nothing_end_the_start(key_file: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="--salt-by-client needs --api-key-file"):
        Security(salt_by_client=True)
    with pytest.raises(ConfigError, match="--salt-file needs --salt-by-client"):
        Security(api_key_file=key_file, salt_file=key_file)


def test_a_secret_that_others_may_write_ends_the_start(
    key_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o620)
    security = Security(api_key_file=key_file, salt_by_client=True, salt_file=file)
    with pytest.raises(ConfigError, match=r"--salt-file .*others than its owner may write it"):
        app.create_app(Config(model="tiny", security=security))


@pytest.mark.parametrize("by_client", [False, True])
def test_groups_without_salts_are_warned_of(
    by_client: bool, key_file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    security = Security(api_key_file=key_file, salt_by_client=by_client)
    app.create_app(Config(model="tiny", security=security))
    assert ("without --salt-by-client" in caplog.text) is not by_client


def test_an_empty_salt_is_refused_before_anything_is_made_of_it() -> None:
    with pytest.raises(BadRequestError, match="non-empty"):
        read_own_salt(b'""')
