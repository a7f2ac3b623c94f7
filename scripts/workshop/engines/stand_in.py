"""A fleet of stand-ins with the interface of a fleet of real engines: only what is started differs.

An EngineSpec describes either kind. Stand-ins get its block size, cache, names, adapters, lease and ports,
and the stand-in's words for the vLLM flags that change what clients see; any other flag is refused, for
ignoring it could make a test pass that proves nothing.
"""

import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from scripts.workshop.engines.engine import BLOCK_TOKENS, HOST, EngineSpec
from scripts.workshop.engines.fleet import Fleet
from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.processes import OwnedProcess

_WORDS = {
    "--enable-auto-tool-choice": "--tool-parser",
    "--tool-call-parser=hermes": "--tool-parser",
    "--exclude-tools-when-tool-choice-none": "--excludes-tools",
    "--disable-fastapi-docs": "--no-docs",
    "--enable-request-id-headers": "--request-id-headers",
    "--enable-per-request-metrics": "--request-metrics",
    "--enable-server-load-tracking": "--load-tracking",
}
_SAME_WORDS = {"--max-num-queued-reqs", "--max-num-queued-tokens"}


class StandInFleet(Fleet):
    """Stand-ins by name. `words` are more arguments of `python -m proxy.simulation`, for every one of them.

    Every stand-in has an admin port (`admin_url`), where it is told to go wrong.
    """

    def __init__(
        self,
        specs: Iterable[EngineSpec],
        logs: pathlib.Path,
        *,
        words: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(specs, logs, say=say)
        self._words = tuple(words)
        self._admin_ports = dict(zip(self.specs, free_ports(len(self.specs)), strict=True))

    def admin_url(self, name: str) -> str:
        """Return where this stand-in's faults are read and changed."""
        return f"http://{HOST}:{self._admin_ports[name]}/faults"

    def start(self, names: Sequence[str] | None = None) -> None:
        """Start the named stand-ins, or all, and do not wait for them."""
        for name in names if names is not None else self.specs:
            words = [*command(self.specs[name]), "--admin", str(self._admin_ports[name]), *self._words]
            self._begun[name] = time.monotonic()
            self._processes[name] = OwnedProcess(name, words, self.log(name), os.environ)


def command(spec: EngineSpec) -> list[str]:
    """Return the command line of the stand-in for an engine; ValueError for what a stand-in cannot do."""
    if spec.connector not in {None, "nixl"}:
        raise ValueError(f"{spec.name}: a stand-in moves KV by NIXL only, not by {spec.connector!r}")
    words = [
        sys.executable, "-m", "proxy.simulation",
        "--host", HOST,
        "--port", str(spec.port),
        "--model", spec.served_name,
        "--role", spec.role,
        "--block-size", str(BLOCK_TOKENS),
        "--blocks", str(spec.kv_tokens // BLOCK_TOKENS),
        "--max-model-len", str(spec.max_model_len),
        "--max-num-seqs", "16",
        "--lease-s", str(spec.lease_s),
    ]  # fmt: skip
    if spec.connector:
        words += ["--side-port", str(spec.side_port)]
    if spec.events_port:
        words += ["--events", str(spec.events_port)]
    if spec.replay_port:
        words += ["--replay", str(spec.replay_port), "--buffer-steps", str(spec.buffer_steps)]
    if seed := dict(spec.env).get("PYTHONHASHSEED"):
        words += ["--hash-seed", seed]
    for name in spec.loras:
        words += ["--lora", name]
    if dict(spec.env).get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1":
        words.append("--lora-updates")
    if dict(spec.env).get("VLLM_ENABLE_RESPONSES_API_STORE") == "1":
        words.append("--responses-store")
    for flag in spec.flags:
        if flag.split("=")[0] in _SAME_WORDS:
            words.append(flag)
        elif flag in _WORDS:
            words.append(_WORDS[flag])
        else:
            raise ValueError(f"{spec.name}: a stand-in does not know {flag}")
    return words
