"""What is called warm is read through the rules and nowhere else; what is cold never is."""

import pathlib
import re

import pytest

from proxy.cli.flags.commands import SETTINGS
from proxy.config.settings import Declared

PROXY = pathlib.Path(__file__).resolve().parents[3] / "proxy"
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for room in PROXY.iterdir()
    if room.name not in {"config", "cli"}
    for path in ([room] if room.suffix == ".py" else room.rglob("*.py"))
}


@pytest.mark.parametrize(
    "declared", [declared for declared in SETTINGS if declared.setting.reloadable], ids=lambda d: d.name
)
def test_a_warm_setting_is_read_through_the_rules_alone(declared: Declared) -> None:
    path = r"\.".join(declared.path)
    assert any(re.search(rf"rules\.(now\.)?{path}\b", text) for text in SOURCES.values())
    kept = [str(file) for file, text in SOURCES.items() if re.search(rf"config\.{path}\b", text)]
    assert not kept


@pytest.mark.parametrize(
    "declared", [declared for declared in SETTINGS if not declared.setting.reloadable], ids=lambda d: d.name
)
def test_a_cold_setting_is_never_looked_up_while_kvproxy_runs(declared: Declared) -> None:
    path = r"\.".join(declared.path)
    looked_up = [str(file) for file, text in SOURCES.items() if re.search(rf"rules\.(now\.)?{path}\b", text)]
    assert not looked_up
