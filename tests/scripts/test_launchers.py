"""Every script starts from anywhere, and its help says in a sentence what it is for."""

import ast
import pathlib
import subprocess
import sys

import pytest

from scripts.workshop.checkout import ROOT

LAUNCHERS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: launcher.stem)
def test_a_launcher_starts_from_anywhere(launcher: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [sys.executable, str(launcher), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    opening = ast.get_docstring(ast.parse(launcher.read_text("utf-8")))
    assert opening is not None
    assert opening.splitlines()[0] in " ".join(done.stdout.split())
