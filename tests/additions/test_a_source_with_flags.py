"""A source of instances with flags of its own is one class more, and any installed package may bring both:
kvproxy is not changed for them.
"""

import asyncio
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import aiohttp
import pytest

from proxy.cli.flags import read_arguments
from proxy.cli.flags.commands import settings_of_sources
from proxy.cli.reference import page
from proxy.config import Config
from proxy.config.settings import COUNT, FILE, Setting
from proxy.errors import ConfigError
from proxy.phases import Role
from proxy.service import assemble
from proxy.watching.membership.base import SourceSettings
from proxy.watching.membership.registry import GROUP, registered
from tests.additions.test_a_membership_source import PATIENT, Directory
from tests.helpers.service import ask, engines, kvproxy

ROOT = pathlib.Path(__file__).parents[2]


class DirectorySettings(SourceSettings, frozen=True, kw_only=True):
    """What the directory is told."""

    directory: Annotated[
        pathlib.Path | None, Setting("--directory", FILE, "decode engines by address, one a line")
    ] = None
    directory_most: Annotated[
        int, Setting("--directory-most", COUNT, "how many of them are taken", least=1, group="routing")
    ] = 100

    @property
    def used(self) -> bool:
        return self.directory is not None

    def source(self, config: Config) -> Directory:
        assert self.directory is not None
        assert config.model
        try:
            text = self.directory.read_text()
        except OSError as error:
            raise ConfigError(f"--directory {self.directory}: {error.strerror}") from None
        return Directory(text.split()[: self.directory_most])


SERVE = ["serve", "-m", "tiny"]


def told(
    words: list[str], kinds: Sequence[type[SourceSettings]] = (DirectorySettings,)
) -> tuple[Config, SourceSettings]:
    config = read_arguments([*SERVE, *words], kinds).config
    (section,) = config.membership
    assert isinstance(section, SourceSettings)
    return config, section


def test_each_setting_has_a_flag_an_environment_name_and_a_key(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kvproxy.toml"
    file.write_text('directory = "of the file"\ndirectory-most = 3\n')
    pair = ["-p", "a:1", "-d", "b:1"]
    assert told(pair)[1] == DirectorySettings()
    assert told([*pair, "--config", str(file)])[1] == DirectorySettings(
        directory=pathlib.Path("of the file"), directory_most=3
    )
    monkeypatch.setenv("KVPROXY_DIRECTORY_MOST", "4")
    monkeypatch.setenv("KVPROXY_DIRECTORIES", "5")
    assert told([*pair, "--config", str(file), "--directory", "x"])[1] == DirectorySettings(
        directory=pathlib.Path("x"), directory_most=4
    )
    (doubt,) = read_arguments([*SERVE, *pair], [DirectorySettings]).doubts
    assert doubt.endswith("is KVPROXY_DIRECTORY meant?")


def test_the_settings_are_checked_and_have_help_and_lines_in_the_reference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError, match="--directory-most must be at least 1, not 0"):
        told(["-p", "a:1", "-d", "b:1", "--directory-most", "0"])
    with pytest.raises(SystemExit):
        told(["--help"])
    assert "--directory FILE" in capsys.readouterr().out
    (settings,) = settings_of_sources([DirectorySettings]).values()
    written = page(settings)
    assert [line for line in written.splitlines() if line.startswith(("## ", "| `"))] == [
        "## Engines",
        "| `--directory` | `FILE` |  | `KVPROXY_DIRECTORY` | decode engines by address, one a line. |",
        "## Routing",
        (
            "| `--directory-most` | number, at least 1 | 100 | `KVPROXY_DIRECTORY_MOST` | how many of them "
            "are taken. |"
        ),
    ]


def test_with_the_source_no_engine_need_be_named() -> None:
    assert told(["--directory", "x"])[0].instances == ()
    with pytest.raises(ConfigError, match="--prefill and --decode need at least one"):
        told([])


class Taken(SourceSettings, frozen=True, kw_only=True):
    port: Annotated[int, Setting("--port", COUNT, "taken")] = 1


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ConfigError, match="--port of Taken is the name of another setting"):
        read_arguments([*SERVE, "-p", "a:1", "-d", "b:1"], [Taken])


async def test_the_instances_that_its_settings_name_are_there_and_serve(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "directory"
    async with engines(prefill=1, decode=1) as made:
        file.write_text(f"{made.decode[0].address}\n127.0.0.1:1\n")
        named = made.config(**PATIENT)
        prefill_only = tuple(spec for spec in named.instances if spec.role is Role.PREFILL)
        own = DirectorySettings(directory=file, directory_most=1)
        config = made.config(**PATIENT, instances=prefill_only, membership=[own])
        async with kvproxy(config) as service:
            assert len(service.fleet) == 2
            assert (await service.complete("hello")).status == 200


def test_a_source_that_cannot_be_made_says_why(tmp_path: pathlib.Path) -> None:
    gone = DirectorySettings(directory=tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"--directory .*: No such file"):
        assemble(Config(model="tiny", membership=[gone]))


def installed(folder: pathlib.Path, value: str) -> None:
    """A package in `folder` that brings a source."""
    info = folder / "directory-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: directory\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ndirectory = {value}\n")


async def test_an_installed_package_brings_the_source_to_the_command(tmp_path: pathlib.Path) -> None:
    installed(tmp_path, f"{__name__}:DirectorySettings")
    file = tmp_path / "directory"
    async with engines(prefill=1, decode=1) as made, aiohttp.ClientSession() as session:
        file.write_text(made.decode[0].address)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", *SERVE, "-p", made.prefill[0].address, "--port", "0",
            "--kv-events", "off",
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "KVPROXY_DIRECTORY": str(file)},
        )  # fmt: skip
        try:
            assert process.stderr is not None
            async with asyncio.timeout(60):
                while (found := re.search(rb"on (http://\S+),", await process.stderr.readline())) is None:
                    assert process.returncode is None
                url = found[1].decode()
                while (answer := await ask(session, url, "/ready")).status != 200:  # noqa: ASYNC110  # over HTTP
                    await asyncio.sleep(0.05)
            status = (await ask(session, url, "/status")).json
            assert status["decode_nodes"] == [made.decode[0].address], answer.body
        finally:
            process.terminate()
            await process.communicate()
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:X", "cannot be loaded: ModuleNotFoundError"),
        (f"{__name__}:Directory", "is no SourceSettings"),
    ],
)
def test_a_package_whose_entry_point_is_no_source_is_named_in_the_error(
    value: str, words: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"the source directory \({re.escape(value)}\) .*{words}"):
        registered()
