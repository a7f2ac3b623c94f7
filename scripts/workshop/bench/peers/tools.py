"""The engine and the load generator of the comparison are C, built when they are needed: neither may limit
anybody.
"""

import pathlib
import shutil
import subprocess
from typing import NamedTuple

SOURCES = pathlib.Path(__file__).with_name("c")
COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")


class NoCompilerError(RuntimeError):
    """There is no C compiler, or it did not take our sources; the message says which."""


class Tools(NamedTuple):
    """Programs; their options stand at the head of their sources."""

    engine: pathlib.Path
    load: pathlib.Path


def build(folder: pathlib.Path) -> Tools:
    """Compile both into a folder; NoCompilerError if that is not possible here."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NoCompilerError(
            f"the comparison with other routers needs a C compiler ({', '.join(COMPILERS)}); install gcc"
        )
    return Tools(*(_compiled(compiler, SOURCES / f"{name}.c", folder) for name in ("fakevllm", "loadgen")))


def _compiled(compiler: str, source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    program = folder / source.stem
    command = [compiler, *_FLAGS, "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoCompilerError(f"{' '.join(command)} failed:\n{done.stderr}")
    return program
