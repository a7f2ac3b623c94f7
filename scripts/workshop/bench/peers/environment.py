"""The other routers live in an environment of their own, installed from the package registry when it is not
current.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from scripts.workshop.checkout import ROOT

PEERS = ("vllm-router==0.1.17", "sglang-router==0.3.2")
_STAMP = ".stamp"


class NoPeersError(RuntimeError):
    """pip could not install them; the message has its last words."""


def ensure_peers() -> pathlib.Path:
    """Return the folder of their programs. `KVPROXY_PEERS_ENV` says where the environment is to be, and
    `KVPROXY_PIP_ARGS` holds more arguments for pip. NoPeersError if they cannot be installed.
    """
    folder = pathlib.Path(os.environ.get("KVPROXY_PEERS_ENV") or ROOT / ".peers-env")
    wanted = " ".join([sys.version, *PEERS])
    stamp = folder / _STAMP
    if not stamp.exists() or stamp.read_text("utf-8") != wanted:
        print(f"installing {' and '.join(PEERS)} into {folder} (once)", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        more = shlex.split(os.environ.get("KVPROXY_PIP_ARGS", ""))
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        _run([*pip, *more, *PEERS])
        stamp.write_text(wanted, "utf-8")
    return folder / "bin"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoPeersError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
