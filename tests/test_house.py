"""The house stands as it is described: every room has a rule, a line on the map and a place in the import
order."""

import ast
import functools
import pathlib
import re
import tomllib

import pytest

from proxy.config import Config, State
from proxy.service import assemble

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = sorted(init.parent for init in (ROOT / "proxy").glob("*/__init__.py"))
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
HOUSE = ROOT / "docs" / "architecture.md"
CODE = ("proxy", "kvevents", "scripts", "tests/proofs", "tests/hostile", "tests/fuzz")
FOLDERS = sorted(init for package in ("proxy", "kvevents") for init in (ROOT / package).rglob("__init__.py"))


def docstring(path: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_folder_opens_with_its_rule(folder: pathlib.Path) -> None:
    assert docstring(folder).endswith("."), f"{folder} says nothing of what belongs there"


def test_the_map_names_every_room_and_no_other() -> None:
    told = re.findall(r"^    (\w+) {2,}\S", docstring(ROOT / "proxy" / "__init__.py"), re.MULTILINE)
    assert sorted(told) == [room.name for room in ROOMS]


def test_the_map_goes_down_as_imports_do() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["name"] == "imports point down")
    height = {name: floor for floor, layer in enumerate(layers) for name in layer.split(" | ")}
    told = re.findall(r"^    (\w+) {2,}\S", docstring(ROOT / "proxy" / "__init__.py"), re.MULTILINE)
    assert [height[room] for room in told] == sorted(height[room] for room in told)


def test_every_folder_is_installed() -> None:
    named = re.search(r"^packages =\n((?:    \S+\n)+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert named is not None
    packages = {".".join(folder.parent.relative_to(ROOT).parts) for folder in FOLDERS}
    assert set(named[1].split()) == packages


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_the_files_that_a_page_names_are_there(page: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.\w+)?|[a-z_]+\.py)`", text)
    missing = [name for name in named if not any((ROOT / base / name).exists() for base in ("", "proxy"))]
    assert not missing


def names_in(path: pathlib.Path) -> set[str]:
    """What a module defines: classes, functions, their arguments, and whatever is assigned."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.arg():
                found.add(node.arg)
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                found.add(node.attr)
    return found


@functools.cache
def defined() -> frozenset[str]:
    """Everything that is defined anywhere, and the modules' own names."""
    modules = [path for top in CODE for path in (ROOT / top).rglob("*.py")]
    return frozenset({path.stem for path in modules}.union(*map(names_in, modules)))


NOT_OURS = {"StrEnum", "logging.Handler"}
NO_NAME = re.compile(r".*\.(py|toml|md)|kvproxy[._]\w+")
"""Files, series, a logger and a group of entry points."""


def test_the_names_on_the_page_of_the_house_are_defined() -> None:
    text = HOUSE.read_text()
    spans = re.findall(r"`@?([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\([^`\n]*\)|=[^`\n]*)?`", text)
    told = {name for name in spans if not NO_NAME.fullmatch(name)} - NOT_OURS
    packages = {folder.parent.name for folder in FOLDERS}
    missing = {name for name in told if not {*name.split(".")} <= defined() | packages}
    assert not missing
    assert len(told) > 50


def test_what_the_page_of_the_house_places_in_a_file_is_there() -> None:
    text = HOUSE.read_text()
    placed = re.findall(r"`@?(\w+(?:\.\w+)*)(?:\(\))?`(?: and `(\w+)`)? (?:in|of) `((?:\w+/)+\w+\.py)`", text)
    files = [(set(filter(None, (*first.split("."), second))), file) for first, second, file in placed]
    missing = {(*names, file) for names, file in files if not names <= names_in(_there(file))}
    assert not missing
    assert len(files) > 15


def _there(file: str) -> pathlib.Path:
    return next(path for base in ("", "proxy") if (path := ROOT / base / file).exists())


def anchors(page: pathlib.Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_links_of_a_page_lead_somewhere(page: pathlib.Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


async def test_the_pages_name_every_series_and_no_other(tmp_path: pathlib.Path) -> None:
    service = assemble(Config(model="tiny", policy="least_ms", state=State(state_dir=tmp_path / "state")))
    served = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in service.registry.collect()
        if family.name.startswith("kvproxy_")
    }
    rows = re.findall(
        r"^\| `(kvproxy_\w+)` \| (\w+) \| [^|]* \| \w+ \| \w.*\. \|$",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    assert len(dict(rows)) == len(rows)
    assert dict(rows) == served
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):  # which has names of old
        named = {name.removesuffix("_bucket") for name in re.findall(r"\bkvproxy_[a-z_]+", page.read_text())}
        assert named <= served.keys(), page
