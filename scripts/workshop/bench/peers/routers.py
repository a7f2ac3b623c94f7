"""A router is a command line, and the mode in which it serves; like is compared with like."""

import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scripts.workshop.live.ports import free_ports
from scripts.workshop.live.proxy import HOST, KVPROXY

MODEL = "m"
FLOOR = "floor"
"""The name of a proxy that does nothing."""


class Mode(StrEnum):
    """How a router serves."""

    ONE_LEG = "one leg, round robin"
    PD = "prefill + decode, round robin"
    AFFINITY = "prefill + decode, by cache"
    TOKENIZED = "prefill + decode, by cache, kvproxy tokenizes"


BY_CACHE = frozenset({Mode.AFFINITY, Mode.TOKENIZED})


@dataclass(frozen=True, slots=True)
class Engines:
    """Ports of the backend, and of each engine's publisher of KV events: events and replay."""

    prefill: Sequence[int]
    decode: Sequence[int]
    publishers: Mapping[int, tuple[int, int]]

    def named(self, port: int, *, events: bool) -> str:
        """One of them, as kvproxy is told of it."""
        if not events:
            return _address(port)
        live, replay = self.publishers[port]
        return f"{_address(port)}?events=tcp://{_address(live)}&replay=tcp://{_address(replay)}"


@dataclass(frozen=True, slots=True)
class Router:
    """One to be started."""

    name: str
    modes: frozenset[Mode]
    port: int
    command: tuple[str, ...]
    ours: bool = False
    passes_params: bool = True
    """With two legs it hands the `kv_transfer_params` of the first to the second, as vLLM's NIXL wants it."""


def kvproxy(
    engines: Engines, mode: Mode, *, tokenizer: pathlib.Path, program: Sequence[str] = (str(KVPROXY),)
) -> Router:
    """With its defaults but for the policy, by which all requests have two legs where there are engines for
    both: metrics, access log, custody and truth meter on. `tokenizer`: a model's directory, used where
    prompts are to be tokenized.
    """
    [port] = free_ports(1)
    command = [*program, "serve", "--host", HOST, "--port", str(port), "--model", MODEL]
    by_cache = mode in BY_CACHE
    if mode is Mode.ONE_LEG:
        command += ["--both", *(_address(port) for port in engines.decode)]
    else:
        command += ["--prefill", *(engines.named(port, events=by_cache) for port in engines.prefill)]
        command += ["--decode", *(engines.named(port, events=by_cache) for port in engines.decode)]
    command += ["--policy", "cache_affinity" if by_cache else "round_robin"]
    if mode is Mode.TOKENIZED:
        command += ["--tokenizer", str(tokenizer)]
    return Router("kvproxy", frozenset({mode}), port, tuple(command), ours=True)


def floor(engines: Engines) -> Router:
    """A proxy that does nothing but pass on, on the libraries that kvproxy uses."""
    [port] = free_ports(1)
    command = [sys.executable, "-P", str(pathlib.Path(__file__).with_name("floor.py")), str(port)]
    command += [str(engine) for engine in engines.decode]
    return Router(FLOOR, frozenset({Mode.ONE_LEG}), port, tuple(command))


def peers(programs: pathlib.Path, engines: Engines, folder: pathlib.Path) -> Iterator[Router]:
    """The others. `programs`: where they were installed; nginx is used if it is installed already. `folder`:
    for what nginx writes.
    """
    workers = ["--worker-urls", *map(_url, engines.decode)]
    vllm = [str(programs / "vllm-router"), "--log-level", "warning"]
    sglang = [str(programs / "python"), "-m", "sglang_router.launch_router", "--log-level", "warn"]
    decodes = [word for port in engines.decode for word in ("--decode", _url(port))]
    vllm_pd = ["--vllm-pd-disaggregation", *decodes]
    vllm_pd += [word for port in engines.prefill for word in ("--prefill", _url(port))]
    sglang_pd = ["--pd-disaggregation", *decodes]
    sglang_pd += [word for port in engines.prefill for word in ("--prefill", _url(port), _BOOTSTRAP_PORT)]
    in_turns, by_cache = ["--policy", "round_robin"], ["--policy", "cache_aware"]
    yield _rust("vllm-router", {Mode.ONE_LEG}, [*vllm, *workers, *in_turns])
    yield _rust("vllm-router", {Mode.PD}, [*vllm, *vllm_pd, *in_turns])
    yield _rust("vllm-router", {Mode.AFFINITY, Mode.TOKENIZED}, [*vllm, *vllm_pd, *by_cache])
    yield _rust("sglang-router", {Mode.ONE_LEG}, [*sglang, *workers, *in_turns])
    yield _rust("sglang-router", {Mode.PD}, [*sglang, *sglang_pd, *in_turns], passes_params=False)
    yield _rust("sglang-router", {Mode.TOKENIZED}, [*sglang, *sglang_pd, *by_cache], passes_params=False)
    if nginx := shutil.which("nginx"):
        [port] = free_ports(1)
        settings = folder / "nginx.conf"
        settings.write_text(_nginx(folder, port, engines.decode), "utf-8")
        yield Router("nginx", frozenset({Mode.ONE_LEG}), port, (nginx, "-c", str(settings)))


_BOOTSTRAP_PORT = "9000"


def _rust(name: str, modes: set[Mode], command: list[str], *, passes_params: bool = True) -> Router:
    port, metrics_port = free_ports(2)
    command += ["--host", HOST, "--port", str(port), "--prometheus-port", str(metrics_port)]
    command += ["--worker-startup-check-interval", "1"]
    return Router(name, frozenset(modes), port, tuple(command), passes_params=passes_params)


def _nginx(folder: pathlib.Path, port: int, engines: Sequence[int]) -> str:
    temporary = "".join(
        f"  {kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = " ".join(f"server {_address(engine)};" for engine in engines)
    return f"""\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 1m; keepalive_requests 1000000;
{temporary}
  upstream engines {{ {servers} keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen {_address(port)} backlog=1024;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""


def _address(port: int) -> str:
    return f"{HOST}:{port}"


def _url(port: int) -> str:
    return f"http://{HOST}:{port}"
