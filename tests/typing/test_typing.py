"""What users may write with a public package passes `mypy --strict`, and what they may not is an error."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
API = Path(__file__).with_name("kvevents_api.py")


def mypy(source: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Check a user's file, somewhere else, with the strictest rules and no settings of ours."""
    (folder / "users_file.py").write_text(source, encoding="utf-8")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--cache-dir",
            folder / "cache",
            "users_file.py",
        ],
        check=False,
        cwd=folder,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_right_use_passes_and_wrong_use_does_not(tmp_path: Path) -> None:
    source = API.read_text(encoding="utf-8")
    right = mypy(source, tmp_path)
    assert right.returncode == 0, right.stdout
    wrong = mypy(source.replace("# type: ignore", "# not ignored"), tmp_path)
    assert wrong.stdout.count(": error: ") >= source.count("# type: ignore[")


@pytest.mark.parametrize("module", ["kvevents", "kvevents.snapshot", "kvevents.subscriber"])
def test_every_public_name_is_used(module: str) -> None:
    used = {
        node.id for node in ast.walk(ast.parse(API.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
    }
    used |= {
        node.attr
        for node in ast.walk(ast.parse(API.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert set(importlib.import_module(module).__all__) <= used
