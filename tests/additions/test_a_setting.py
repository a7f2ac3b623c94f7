"""One declaration adds a setting: flag, key in a file, environment name, check, and line of the reference."""

import argparse
import pathlib
from typing import Annotated

import pytest

from proxy.cli.flags.generating import add_groups
from proxy.cli.reference import table
from proxy.config.settings import SECONDS, Section, Setting, settings_of
from proxy.config.sources import Sources, read_file
from proxy.errors import ConfigError


class Patience(Section, frozen=True, kw_only=True):
    """What is added: this is all of it."""

    grace_s: Annotated[
        float,
        Setting("--grace-period", SECONDS, "how long a guest may be late", above=0, most=60, group="manners"),
    ] = 5.0


SETTINGS = settings_of(Patience)


def read(
    words: tuple[str, ...] = (), environment: dict[str, str] | None = None, file: pathlib.Path | None = None
) -> float:
    parser = argparse.ArgumentParser()
    add_groups(parser, SETTINGS)
    said = read_file(file, SETTINGS) if file is not None else {}
    sources = Sources(vars(parser.parse_args(words)), environment or {}, said, str(file))
    return sources.build(Patience, SETTINGS).grace_s


def test_the_setting_has_a_flag_an_environment_name_and_a_key(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("grace-period = 7")
    assert read() == 5.0
    assert read(file=file) == 7.0
    assert read((), {"KVPROXY_GRACE_PERIOD": "8"}, file) == 8.0
    assert read(("--grace-period", "9"), {"KVPROXY_GRACE_PERIOD": "8"}, file) == 9.0


def test_the_setting_is_checked_wherever_it_was_set(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("grace-period = 0")
    wrong = "--grace-period must be more than 0 and at most 60 seconds"
    for text, make in (
        (wrong, lambda: Patience(grace_s=61)),
        (wrong, lambda: read(("--grace-period", "0"))),
        (f"{wrong} (set by KVPROXY_GRACE_PERIOD)", lambda: read((), {"KVPROXY_GRACE_PERIOD": "0"})),
        (f"{wrong} (set by grace-period in {file})", lambda: read(file=file)),
    ):
        with pytest.raises(ConfigError) as refused:
            make()
        assert str(refused.value) == text


def test_the_setting_has_help_and_a_line_in_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(("--help",))
    told = capsys.readouterr().out
    assert "manners:\n  --grace-period S" in told
    assert "how long a guest may be late (default: 5)" in told
    assert table(SETTINGS).splitlines()[-1] == (
        "| `--grace-period` | seconds, more than 0 and at most 60 | 5 | `KVPROXY_GRACE_PERIOD` |"
        " how long a guest may be late. |"
    )
