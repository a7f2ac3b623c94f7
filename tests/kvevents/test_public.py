"""What users of kvevents may rely on is named, told of in the docs, and all that this project itself relies
on."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvevents

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kvevents"
PAGE = ROOT / "docs" / "kvevents.md"
PUBLIC = ("kvevents", "kvevents.snapshot", "kvevents.subscriber")

# These try kvevents' own parts: its tests, hostile input to single modules, and the cost of one of them.
_LOOK_INSIDE = ("tests/kvevents/", "tests/fuzz/", "scripts/workshop/bench/index.py")


def names(module: str) -> set[str]:
    return set(importlib.import_module(module).__all__)


def users() -> Iterator[Path]:
    for folder in ("docs", "proxy", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if not str(path.relative_to(ROOT)).startswith(_LOOK_INSIDE):
                yield path


def private_imports(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kvevents":
            allowed = names(node.module or "") if node.module in PUBLIC else set()
            wholes = (f"{node.module}.{each.name}" for each in node.names if each.name not in allowed)
            found += [whole for whole in wholes if whole not in PUBLIC]
        elif isinstance(node, ast.Import):
            found += [
                each.name
                for each in node.names
                if each.name.split(".")[0] == "kvevents" and each.name not in PUBLIC
            ]
    return found


def test_nothing_outside_imports_what_is_private() -> None:
    checked = [path for path in users() if "kvevents" in path.read_text(encoding="utf-8")]
    assert len(checked) > 20
    found = {
        str(path.relative_to(ROOT)): imports
        for path in checked
        if (imports := private_imports(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "from kvevents.source import Source",
        "from kvevents import source",
        "from kvevents.subscriber import Applier",
        "import kvevents.wire",
    ],
)
def test_an_import_of_something_private_is_seen(source: str) -> None:
    assert private_imports(source)


@pytest.mark.parametrize("module", PUBLIC)
def test_all_that_is_public_is_there_and_documented(module: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    there = importlib.import_module(module)
    listed = list(there.__all__)
    assert listed == sorted(listed, key=lambda name: (not name.isupper(), name[0].islower(), name))
    for name in listed:
        value = getattr(there, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
        assert re.search(rf"\b{name}\b", page), f"docs/kvevents.md does not tell of {name}"


def test_the_map_names_every_module() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules <= set(re.findall(r"`(\w+)`", kvevents.__doc__ or "")) | {"subscriber", "snapshot"}


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize(
    ("module", "loads"), [("kvevents", False), ("kvevents.snapshot", False), ("kvevents.subscriber", True)]
)
def test_only_the_subscriber_needs_zeromq(module: str, *, loads: bool) -> None:
    program = f"import sys, {module}; print('zmq' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert told.stdout.strip() == str(loads)
