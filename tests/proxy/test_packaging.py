"""What `pip install` brings is all there is: packages are named one by one, and none is forgotten."""

import configparser
import pathlib

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
