"""What `pip install` brings is all there is: packages are named one by one, and none is forgotten."""

import configparser
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_package_is_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("kvevents", "proxy")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(setup["options"]["packages"].split()) == there


def test_aiohttp_whose_private_parts_are_used_has_an_upper_bound() -> None:
    """Another minor release may lack them; where none is used any more the bound goes, and this."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    (wanted,) = re.findall(r"(?m)^aiohttp(\S+)$", setup["options"]["install_requires"])
    private = re.compile(
        r"connection\._[a-z]|from aiohttp\.\S+ import [^\n]*\b_[a-z]|super\(\)\._[a-z]|\b_conns\b"
    )
    users = [
        path for path in (ROOT / "proxy").rglob("*.py") if private.search(path.read_text(encoding="utf-8"))
    ]
    assert users
    assert re.fullmatch(r">=3\.\d+(\.\d+)?,<3\.\d+", wanted), wanted
