"""A wrong flag ends at once with one line that names it and says what to do; exit code 2."""

import pathlib

import pytest

from proxy.cli.flags import read_config
from proxy.cli.main import main
from proxy.config import Config, EventSource, parse_instance
from proxy.errors import ConfigError
from proxy.phases import Role

BASE = ["serve", "-m", "tiny"]
PAIR = [*BASE, "-p", "127.0.0.1:8100", "-d", "127.0.0.1:8200"]


def test_flags_given_twice_append() -> None:
    config = read_config([*BASE, "-p", "a:1", "b:1", "--prefill", "c:1", "-d", "d:1", "--both", "e:1"])
    assert [(spec.address, spec.role) for spec in config.instances] == [
        *((address, Role.PREFILL) for address in ("a:1", "b:1", "c:1")),
        ("d:1", Role.DECODE),
        ("e:1", Role.BOTH),
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8100", "127.0.0.1:8100"),
        ("http://Gpu-1.Example:80/", "gpu-1.example:80"),
        ("[::1]:8100", "[::1]:8100"),
        ("https://gpu1:443/", "gpu1:443"),
        ("under_score:08100", "under_score:8100"),
    ],
)
def test_addresses_are_brought_into_one_form(text: str, address: str) -> None:
    assert parse_instance(text, Role.PREFILL).address == address


def test_event_sources_can_be_told_for_several_ranks() -> None:
    spec = parse_instance(
        "h:1?events=tcp://h:5557,tcp://h:5558&replay=tcp://h:5657,tcp://h:5658&topic=kv", Role.PREFILL
    )
    assert spec.event_sources == (
        EventSource(0, "tcp://h:5557", "tcp://h:5657", "kv"),
        EventSource(1, "tcp://h:5558", "tcp://h:5658", "kv"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "host",
        ":8100",
        "h:",
        "h:0",
        "h:65536",
        "h:x",
        "h:-1",
        "h:٣",
        "ftp://h:1",
        "https://http://h:1",
        "https://u:p@h:1",
        "h:1#x",
        "user@h:1",
        "h:1/path",
        "[::1:8100",
        "[zz]:1",
        "a b:1",
        "h:1?x=1",
        "h:1?events=h:5557",
        "h:1?replay=tcp://h:1",
        "h:1?events=tcp://h:1,tcp://h:2&replay=tcp://h:3",
        "h:1?events",
    ],
)
def test_a_wrong_address_names_the_flag(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--decode '"):
        parse_instance(text, Role.DECODE)


def test_an_instance_given_twice_by_one_flag_is_not_told_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*BASE, "-p", "a:1", "a:1", "-d", "b:1"])
    assert capsys.readouterr().err == "kvproxy: --prefill a:1 is given twice\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["serve"], "--model"),
        (["serve", "-m", ""], "--model"),
        (BASE, "--prefill and --decode need at least one"),
        ([*BASE, "-p", "a:1"], "--decode needs at least one"),
        ([*BASE, "-p", "a:1", "-d", "a:1"], "given twice (first as --prefill)"),
        ([*PAIR, "--port", "70000"], "--port"),
        ([*PAIR, "--port", "x"], "--port"),
        ([*PAIR, "--kv-lease-s", "10"], "--kv-lease-s"),
        ([*PAIR, "--startup-timeout", "0"], "--startup-timeout"),
        ([*PAIR, "--shutdown-timeout", "-1"], "--shutdown-timeout"),
        ([*PAIR, "--drain-delay", "-1"], "--drain-delay"),
        ([*PAIR, "--stream-keepalive", "-1"], "--stream-keepalive"),
        ([*PAIR, "--stream-keepalive", "nan"], "--stream-keepalive"),
        ([*PAIR, "--max-body-mb", "0"], "--max-body-mb"),
        ([*PAIR, "--client-stall-timeout", "0"], "--client-stall-timeout"),
        ([*PAIR, "--max-queue", "-1"], "--max-queue"),
        ([*PAIR, "--when-no-prefill", "hope"], "--when-no-prefill"),
        ([*PAIR, "--connect-timeout", "0"], "--connect-timeout"),
        ([*PAIR, "--connect-timeout", "11"], "--connect-timeout"),
        ([*PAIR, "--prefill-timeout", "nan"], "--prefill-timeout"),
        ([*PAIR, "--first-byte-timeout", "-1"], "--first-byte-timeout"),
        ([*PAIR, "--chunk-timeout", "inf"], "--chunk-timeout"),
        ([*PAIR, "--request-timeout", "-1"], "--request-timeout"),
        ([*PAIR, "--max-attempts", "0"], "--max-attempts"),
        ([*PAIR, "--retry-budget", "1.5"], "--retry-budget"),
        ([*PAIR, "--kv-lease-s", "nan"], "--kv-lease-s"),
        ([*PAIR, "--policy", "best"], "--policy"),
        ([*PAIR, "--policy", "no.such.module:Class"], "--policy"),
        ([*PAIR, "--policy", "json:JSONDecoder"], "--policy"),
        ([*PAIR, "--connector", "magic"], "--connector"),
        ([*PAIR, "--engine-api-key-file", "/nonexistent"], "--engine-api-key-file"),
        ([*PAIR, "--state-dir", "/nonexistent/state"], "--state-dir /nonexistent/state"),
        ([*PAIR, "--state-dir", "/dev/null"], "it is not a directory"),
        ([*PAIR, "--state-interval", "0"], "--state-interval"),
        ([*PAIR, "--log-level", "loud"], "--log-level"),
        ([*PAIR, "--nonsense"], "--nonsense"),
        ([*PAIR, "--host", "256.1.1.1", "--port", "1"], "--host"),
    ],
)
def test_a_wrong_flag_ends_with_one_line_and_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("kvproxy: ")]
    assert ended.value.code == 2
    assert len(said) == 1
    assert words in said[0]


def test_every_flag_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_config(["serve", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--prefill", "--both", "--connector", "--kv-lease-s", "--decision-headers", "--policy"):
        assert flag in text


def test_the_engine_key_is_read_from_its_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    assert read_config([*PAIR, "--engine-api-key-file", str(file)]).engine_api_key == "secret"
    file.write_text("two words\n")
    with pytest.raises(ConfigError, match="--engine-api-key-file"):
        read_config([*PAIR, "--engine-api-key-file", str(file)])


def test_salts_by_client_are_off_unless_asked_for() -> None:
    assert not read_config(PAIR).security.salt_by_client
    flags = ["--api-key-file", "/keys", "--salt-by-client", "--salt-file", "/salt"]
    security = read_config([*PAIR, *flags]).security
    assert (security.salt_by_client, security.salt_file) == (True, pathlib.Path("/salt"))


def test_the_admin_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_API_KEY", "k")
    assert read_config(PAIR).admin_api_key == "k"
    monkeypatch.setenv("ADMIN_API_KEY", "")
    assert read_config(PAIR).admin_api_key is None


def test_config_checks_itself_from_python_too() -> None:
    with pytest.raises(ConfigError):
        Config(model="tiny", kv_lease_s=5)
